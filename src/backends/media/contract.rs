//! The promises of the media store, as tests.

/// One test per promise of [`super::Media`], for an implementation given as a `Place`.
macro_rules! media_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::media::contract::promises;
            what_was_written_is_read_and_known,
            a_blob_in_many_parts_comes_back_whole,
            an_empty_blob_is_a_blob,
            a_range_has_its_ends_and_what_is_beyond_is_not_there,
            nothing_is_seen_before_the_end,
            an_abort_leaves_nothing,
            what_is_not_there_is_none_and_can_be_removed,
            a_blob_survives_a_restart_and_another_handle_sees_it,
            of_two_writers_one_blob_is_left_whole,
        }
    };
}
pub(crate) use media_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use bytes::Bytes;
    use futures_util::TryStreamExt;

    use crate::backends::contract::Place;
    use crate::backends::media::{Media, MediaInfo, MediaKey};

    type Port = dyn Media;

    fn fresh() -> MediaKey {
        MediaKey::fresh("png").expect("valid")
    }

    /// Bytes that tell where they are from.
    fn pattern(seed: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8).collect()
    }

    async fn write(port: &Port, key: &MediaKey, bytes: &[u8], piece: usize) -> MediaInfo {
        let mut upload = port.begin(key).await.expect("begins");
        for piece in bytes.chunks(piece) {
            upload.write(Bytes::copy_from_slice(piece)).await.expect("writes");
        }
        upload.finish().await.expect("finishes")
    }

    async fn read(port: &Port, key: &MediaKey, range: Option<std::ops::Range<u64>>) -> Option<Vec<u8>> {
        let (_, body) = port.read(key, range).await.expect("reads")?;
        let pieces: Vec<Bytes> = body.try_collect().await.expect("every piece");
        Some(pieces.concat())
    }

    pub(crate) async fn what_was_written_is_read_and_known(place: impl Place<Port>) {
        let port = place.open().await;
        let (key, bytes) = (fresh(), pattern(1, 10_000));
        let written = write(&*port, &key, &bytes, 999).await;
        assert_eq!(written.size, 10_000);
        assert!(written.etag.len() > 2 && written.etag.starts_with('"') && written.etag.ends_with('"'), "{written:?}");
        assert!(written.stored_at > 1_700_000_000_000, "{written:?}");
        assert_eq!(port.info(&key).await.expect("answers"), Some(written.clone()));
        let (told, _) = port.read(&key, None).await.expect("reads").expect("there");
        assert_eq!((told.size, told.etag), (written.size, written.etag));
        assert_eq!(read(&*port, &key, None).await, Some(bytes));
    }

    pub(crate) async fn a_blob_in_many_parts_comes_back_whole(place: impl Place<Port>) {
        let port = place.open().await;
        let (key, bytes) = (fresh(), pattern(2, 13_000_007));
        let written = write(&*port, &key, &bytes, 700_001).await;
        assert_eq!(written.size, bytes.len() as u64);
        assert!(read(&*port, &key, None).await.expect("there") == bytes, "other bytes came back");
        let middle = read(&*port, &key, Some(5_000_000..11_000_000)).await.expect("there");
        assert!(middle == bytes[5_000_000..11_000_000], "other bytes came back");
    }

    pub(crate) async fn an_empty_blob_is_a_blob(place: impl Place<Port>) {
        let port = place.open().await;
        let key = fresh();
        assert_eq!(write(&*port, &key, &[], 1).await.size, 0);
        assert_eq!(read(&*port, &key, None).await, Some(Vec::new()));
    }

    pub(crate) async fn a_range_has_its_ends_and_what_is_beyond_is_not_there(place: impl Place<Port>) {
        let port = place.open().await;
        let (key, bytes) = (fresh(), pattern(3, 1_000));
        write(&*port, &key, &bytes, 1_000).await;
        for (range, expected) in [
            (0..1, &bytes[..1]),
            (10..20, &bytes[10..20]),
            (990..5_000, &bytes[990..]),
            (1_000..1_001, &[]),
            (7_000..8_000, &[]),
            (5..5, &[]),
        ] {
            assert_eq!(read(&*port, &key, Some(range.clone())).await.as_deref(), Some(expected), "{range:?}");
        }
        let (info, _) = port.read(&key, Some(10..20)).await.expect("reads").expect("there");
        assert_eq!(info.size, 1_000, "the size is the whole blob's");
    }

    pub(crate) async fn nothing_is_seen_before_the_end(place: impl Place<Port>) {
        let port = place.open().await;
        let key = fresh();
        let mut upload = port.begin(&key).await.expect("begins");
        upload.write(Bytes::from(pattern(4, 6 << 20))).await.expect("writes");
        assert_eq!(port.info(&key).await.expect("answers"), None);
        assert_eq!(read(&*port, &key, None).await, None);
        assert_eq!(upload.finish().await.expect("finishes").size, 6 << 20);
    }

    pub(crate) async fn an_abort_leaves_nothing(place: impl Place<Port>) {
        let port = place.open().await;
        for bytes in [100, 6 << 20] {
            let key = fresh();
            let mut upload = port.begin(&key).await.expect("begins");
            upload.write(Bytes::from(pattern(5, bytes))).await.expect("writes");
            upload.abort().await.expect("aborts");
            assert_eq!(port.info(&key).await.expect("answers"), None);
        }
    }

    pub(crate) async fn what_is_not_there_is_none_and_can_be_removed(place: impl Place<Port>) {
        let port = place.open().await;
        let key = fresh();
        assert_eq!(port.info(&key).await.expect("answers"), None);
        assert_eq!(read(&*port, &key, Some(0..1)).await, None);
        port.remove(&key).await.expect("removes nothing");
        write(&*port, &key, b"x", 1).await;
        port.remove(&key).await.expect("removes");
        port.remove(&key).await.expect("removes nothing");
        assert_eq!(read(&*port, &key, None).await, None);
    }

    pub(crate) async fn a_blob_survives_a_restart_and_another_handle_sees_it(place: impl Place<Port>) {
        let (key, bytes) = (fresh(), pattern(6, 5_000));
        {
            let (here, there) = (place.open().await, place.open().await);
            write(&*here, &key, &bytes, 5_000).await;
            assert_eq!(read(&*there, &key, None).await.as_ref(), Some(&bytes));
        }
        place.restart().await;
        assert_eq!(read(&*place.open().await, &key, None).await, Some(bytes));
    }

    pub(crate) async fn of_two_writers_one_blob_is_left_whole(place: impl Place<Port>) {
        let (key, a, b) = (fresh(), pattern(7, 400_000), pattern(8, 300_000));
        let (one, two) = (place.open().await, place.open().await);
        tokio::join!(write(&*one, &key, &a, 10_000), write(&*two, &key, &b, 10_000));
        let left = read(&*one, &key, None).await.expect("there");
        assert!(left == a || left == b, "a mixture of {} bytes", left.len());
    }
}

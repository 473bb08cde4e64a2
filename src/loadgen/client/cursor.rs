//! What one device has of one conversation, and what it may show next. No I/O, no clock.
//!
//! Messages are shown in id order. A message above a hole is held until the hole is filled, or explained by a sync whose
//! `stable` passed it.

use std::collections::BTreeMap;

use crate::loadgen::body::Tag;
use crate::protocol::frames::AckFrame;

/// A message on its way to being shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The message's id.
    pub(crate) id: u64,
    /// Who sent what, when.
    pub(crate) tag: Tag,
    /// The server's time of it, in ms since 1970.
    pub(crate) at: u64,
    /// Whether the server pushed it; otherwise a sync found it.
    pub(crate) is_live: bool,
}

impl Seen {
    /// A device's own message: its ACK is its copy.
    pub(crate) const fn acked(tag: &Tag, ack: &AckFrame) -> Self {
        Self { id: ack.id.0, tag: *tag, at: ack.at, is_live: true }
    }
}

/// What became of a live frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was shown, perhaps with others that waited for it.
    Shown,
    /// It waits above a hole.
    Held,
    /// Its id was here before; of one that is held, with this message.
    Repeated,
    /// Another message is held under its id.
    Contradicts(Tag),
}

/// The cursor of one device in one conversation.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Every id up to this one was shown or explained.
    upto: u64,
    /// Messages above a hole, by id. Unallocated while there is none.
    held: Option<Box<BTreeMap<u64, Seen>>>,
}

impl Cursor {
    /// Every id up to this one was shown or explained.
    pub(crate) const fn upto(&self) -> u64 {
        self.upto
    }

    /// True while messages wait above a hole.
    pub(crate) const fn has_gap(&self) -> bool {
        self.held.is_some()
    }

    /// Messages that wait above a hole.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Seen> {
        self.held.iter().flat_map(|held| held.values())
    }

    /// Takes a live message; appends what may be shown now to `show`.
    pub(crate) fn on_live(&mut self, seen: Seen, show: &mut Vec<Seen>) -> Arrival {
        if seen.id <= self.upto {
            return Arrival::Repeated;
        }
        if let Some(held) = self.held.as_mut().and_then(|held| held.get_mut(&seen.id)) {
            if held.tag.identity() != seen.tag.identity() {
                return Arrival::Contradicts(held.tag);
            }
            // A sync may have been faster: it came by push all the same.
            held.is_live = true;
            return Arrival::Repeated;
        }
        if seen.id > self.upto.saturating_add(1) {
            self.held.get_or_insert_default().insert(seen.id, seen);
            return Arrival::Held;
        }
        show.push(seen);
        self.upto = seen.id;
        self.show_contiguous(show);
        Arrival::Shown
    }

    /// Takes one page of a sync that began after `after`; appends what may be shown now to `show`.
    ///
    /// `stable` explains holes up to itself, but only as far as the page reaches when there is more to come.
    pub(crate) fn on_page(&mut self, page: &[Seen], stable: u64, has_more: bool, show: &mut Vec<Seen>) {
        let reach = if has_more { page.last().map_or(self.upto, |seen| seen.id) } else { u64::MAX };
        let explained = stable.min(reach);
        for seen in page.iter().filter(|seen| seen.id > self.upto) {
            self.held.get_or_insert_default().entry(seen.id).or_insert(*seen);
        }
        if explained > self.upto
            && let Some(held) = &mut self.held
        {
            let above = explained.checked_add(1).map_or_else(BTreeMap::new, |above| held.split_off(&above));
            show.extend(std::mem::replace(&mut **held, above).into_values());
        }
        self.upto = self.upto.max(explained);
        self.show_contiguous(show);
    }

    fn show_contiguous(&mut self, show: &mut Vec<Seen>) {
        if let Some(held) = &mut self.held {
            while let Some(next) = self.upto.checked_add(1)
                && let Some(seen) = held.remove(&next)
            {
                self.upto = next;
                show.push(seen);
            }
            if held.is_empty() {
                self.held = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: u64) -> Seen {
        let tag = Tag { run: 1, conversation: 1, client: 1, counter: id as u32, intended_us: 0, sent_us: 0 };
        Seen { id, tag, at: 0, is_live: true }
    }

    fn ids(show: &[Seen]) -> Vec<u64> {
        show.iter().map(|s| s.id).collect()
    }

    #[test]
    fn messages_above_a_hole_wait_for_it() {
        let (mut cursor, mut show) = (Cursor::default(), Vec::new());
        assert_eq!(cursor.on_live(seen(2), &mut show), Arrival::Held);
        assert!(cursor.has_gap() && show.is_empty());
        assert_eq!(cursor.on_live(seen(2), &mut show), Arrival::Repeated);
        let other = Seen { tag: seen(7).tag, ..seen(2) };
        assert_eq!(cursor.on_live(other, &mut show), Arrival::Contradicts(seen(2).tag));
        assert_eq!(cursor.on_live(seen(1), &mut show), Arrival::Shown);
        assert_eq!((ids(&show), cursor.upto(), cursor.has_gap()), (vec![1, 2], 2, false));
        assert_eq!(cursor.on_live(seen(1), &mut show), Arrival::Repeated);
    }

    #[test]
    fn a_sync_explains_holes_up_to_stable_and_no_further() {
        let (mut cursor, mut show) = (Cursor::default(), Vec::new());
        cursor.on_live(seen(7), &mut show);
        cursor.on_page(&[seen(2), seen(7), seen(9)], 5, false, &mut show);
        assert_eq!((ids(&show), cursor.upto()), (vec![2], 5));
        cursor.on_live(seen(6), &mut show);
        assert_eq!((ids(&show), cursor.upto()), (vec![2, 6, 7], 7));
        cursor.on_page(&[], 10_000, false, &mut show);
        assert_eq!((ids(&show), cursor.upto(), cursor.has_gap()), (vec![2, 6, 7, 9], 10_000, false));
    }

    #[test]
    fn a_page_with_more_to_come_explains_only_as_far_as_it_reaches() {
        let (mut cursor, mut show) = (Cursor::default(), Vec::new());
        cursor.on_page(&[seen(1), seen(3)], 100, true, &mut show);
        assert_eq!((ids(&show), cursor.upto()), (vec![1, 3], 3));
        cursor.on_page(&[], 100, true, &mut show);
        assert_eq!(cursor.upto(), 3);
    }
}

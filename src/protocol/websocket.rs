//! WebSocket framing (RFC 6455, sections 5 to 7) without I/O, for both ends.
//!
//! The frame header codec is tungstenite's. Its stream type is not used: it keeps buffers for life, and most of a chat
//! server's connections are idle. A [`Decoder`] holds nothing while no frame is half read; a frame that arrived whole is
//! handed on straight from the caller's read buffer.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::CloseCode;

/// Largest payload of a control frame. Source: RFC 6455 section 5.5.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// Which end reads: a server wants masked frames, a client wants unmasked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads what a client wrote.
    Server,
    /// Reads what a server wrote.
    Client,
}

/// One thing that the other end said, borrowed from the read buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping with its payload, to be echoed in a pong.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The other end closes, perhaps with a code.
    Close(Option<u16>),
}

/// The other end broke the protocol: send a close with this code, then close the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} (close {})", code.code())]
pub struct Violation {
    /// 1002, 1007 or 1009.
    pub code: CloseCode,
    /// What was wrong.
    pub what: &'static str,
}

const fn protocol(what: &'static str) -> Violation {
    Violation { code: CloseCode::Protocol, what }
}

const INVALID_TEXT: Violation = Violation { code: CloseCode::InvalidText, what: "text is not UTF-8" };
const TOO_BIG: Violation = Violation { code: CloseCode::TooBig, what: "message larger than the limit" };

/// Reads frames out of a byte stream and puts fragmented messages together.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    message_bytes_max: u32,
    /// Bytes of a frame that is not whole yet. Written by `feed`; unallocated while idle.
    partial: Vec<u8>,
    /// The fragmented message under way. Written by `feed`.
    fragments: Option<Box<Fragments>>,
}

#[derive(Debug)]
struct Fragments {
    is_text: bool,
    data: Vec<u8>,
    /// Bytes of `data` that are known to be whole UTF-8 characters.
    valid_upto: usize,
}

struct Header {
    frame: FrameHeader,
    header_bytes: usize,
    payload_bytes: usize,
}

impl Decoder {
    /// A decoder for one connection.
    #[must_use]
    pub const fn new(role: Role, message_bytes_max: u32) -> Self {
        Self { role, message_bytes_max, partial: Vec::new(), fragments: None }
    }

    /// True while a frame or a fragmented message is under way.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        !self.partial.is_empty() || self.fragments.is_some()
    }

    /// Takes what was read from the socket and calls `sink` for each thing that it completes.
    ///
    /// `input` is unmasked in place. After a `Close` event the rest of the input is ignored, as RFC 6455 asks.
    ///
    /// # Errors
    /// The first [`Violation`]; the decoder is of no use after it.
    pub fn feed(&mut self, input: &mut [u8], sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Violation> {
        if self.partial.is_empty() {
            let used = self.drain(input, sink)?;
            if used < input.len() {
                self.partial.extend_from_slice(&input[used..]);
            }
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.partial);
        buffer.extend_from_slice(input);
        let used = self.drain(&mut buffer, sink)?;
        if used < buffer.len() {
            buffer.drain(..used);
            self.partial = buffer;
        }
        Ok(())
    }

    /// Handles every whole frame of `buffer`; returns the bytes used.
    fn drain(&mut self, buffer: &mut [u8], sink: &mut dyn FnMut(Event<'_>)) -> Result<usize, Violation> {
        let mut at = 0;
        while at < buffer.len() {
            let Some(header) = self.header(&buffer[at..])? else { break };
            let start = at + header.header_bytes;
            let end = start + header.payload_bytes;
            let Some(payload) = buffer.get_mut(start..end) else { break };
            if let Some(mask) = header.frame.mask {
                apply_mask(payload, mask);
            }
            if self.frame(&header.frame, payload, sink)? {
                return Ok(buffer.len());
            }
            at = end;
        }
        Ok(at)
    }

    /// Parses and checks one header. `None` means that more bytes are needed.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, Violation> {
        // The first byte alone can be wrong; say so at once rather than wait for the rest.
        if bytes[0] & 0x70 != 0 {
            return Err(protocol("reserved bits are set"));
        }
        let mut cursor = Cursor::new(bytes);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| protocol("reserved opcode"))?;
        let Some((frame, length)) = parsed else { return Ok(None) };
        let is_control = matches!(frame.opcode, OpCode::Control(_));
        if matches!(frame.opcode, OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_))) {
            return Err(protocol("reserved opcode"));
        }
        if frame.mask.is_some() != (self.role == Role::Server) {
            return Err(protocol("frames of a client are masked, frames of a server are not"));
        }
        if is_control && (!frame.is_final || length > CONTROL_PAYLOAD_BYTES_MAX as u64) {
            return Err(protocol("a control frame is whole and has at most 125 bytes"));
        }
        let length_bytes = bytes[1] & 0x7f;
        if (length_bytes == 126 && length < 126) || (length_bytes == 127 && length <= 0xffff) || length >> 63 == 1 {
            return Err(protocol("the length is not in its shortest form"));
        }
        if !is_control {
            match (&self.fragments, frame.opcode) {
                (None, OpCode::Data(Data::Continue)) => {
                    return Err(protocol("a continuation with nothing to continue"));
                }
                (Some(_), OpCode::Data(Data::Text | Data::Binary)) => {
                    return Err(protocol("a new message inside a fragmented one"));
                }
                _ => {}
            }
        }
        let before = self.fragments.as_ref().map_or(0, |f| f.data.len() as u64);
        if !is_control && before.saturating_add(length) > u64::from(self.message_bytes_max) {
            return Err(TOO_BIG);
        }
        let header_bytes = usize::try_from(cursor.position()).expect("a header is short");
        let payload_bytes = usize::try_from(length).expect("checked against the limit");
        Ok(Some(Header { frame, header_bytes, payload_bytes }))
    }

    /// Handles one whole, unmasked frame. Returns true after a close.
    fn frame(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, Violation> {
        match header.opcode {
            OpCode::Control(Control::Ping) => sink(Event::Ping(payload)),
            OpCode::Control(Control::Pong) => sink(Event::Pong(payload)),
            OpCode::Control(_) => {
                sink(Event::Close(close_code(payload)?));
                return Ok(true);
            }
            OpCode::Data(Data::Continue) => self.continuation(header.is_final, payload, sink)?,
            OpCode::Data(kind) => {
                let is_text = kind == Data::Text;
                if header.is_final {
                    whole(is_text, payload, sink)?;
                } else {
                    let mut fragments = Box::new(Fragments { is_text, data: payload.to_vec(), valid_upto: 0 });
                    fragments.check_text()?;
                    self.fragments = Some(fragments);
                }
            }
        }
        Ok(false)
    }

    fn continuation(
        &mut self,
        is_final: bool,
        payload: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Violation> {
        let Some(mut fragments) = self.fragments.take() else {
            return Err(protocol("a continuation with nothing to continue"));
        };
        fragments.data.extend_from_slice(payload);
        if is_final {
            return whole(fragments.is_text, &fragments.data, sink);
        }
        fragments.check_text()?;
        self.fragments = Some(fragments);
        Ok(())
    }
}

impl Fragments {
    /// Fails as soon as the text so far can't become UTF-8; a character cut in half is fine.
    fn check_text(&mut self) -> Result<(), Violation> {
        if !self.is_text {
            return Ok(());
        }
        match std::str::from_utf8(&self.data[self.valid_upto..]) {
            Ok(text) => self.valid_upto += text.len(),
            Err(error) if error.error_len().is_none() => self.valid_upto += error.valid_up_to(),
            Err(_) => return Err(INVALID_TEXT),
        }
        Ok(())
    }
}

fn whole(is_text: bool, data: &[u8], sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Violation> {
    if is_text {
        sink(Event::Text(std::str::from_utf8(data).map_err(|_| INVALID_TEXT)?));
    } else {
        sink(Event::Binary(data));
    }
    Ok(())
}

/// Reads and checks the payload of a close frame. Source: RFC 6455 section 7.4.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let [high, low, reason @ ..] = payload else {
        return if payload.is_empty() { Ok(None) } else { Err(protocol("a close code has two bytes")) };
    };
    let code = u16::from_be_bytes([*high, *low]);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("close code out of range"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation { code: CloseCode::InvalidText, what: "close reason is not UTF-8" });
    }
    Ok(Some(code))
}

/// Masks or unmasks in place, eight bytes at a time. Source: RFC 6455 section 5.3.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let value = u64::from_ne_bytes((&*chunk).try_into().expect("chunks of eight")) ^ wide;
        chunk.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends one whole frame to `out`. A client passes a fresh random mask, a server `None`.
pub fn encode(opcode: OpCode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let header = FrameHeader { is_final: true, rsv1: false, rsv2: false, rsv3: false, opcode, mask };
    out.reserve(payload.len() + 14);
    header.format(payload.len() as u64, out).expect("writing to a vector can't fail");
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[start..], mask);
    }
}

/// A text frame, ready for the socket.
#[must_use]
pub fn text_frame(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(OpCode::Data(Data::Text), text.as_bytes(), mask, &mut out);
    out
}

/// A pong that echoes a ping, ready for the socket.
#[must_use]
pub fn pong_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(OpCode::Control(Control::Pong), payload, mask, &mut out);
    out
}

/// A binary frame, ready for the socket.
#[must_use]
pub fn binary_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(OpCode::Data(Data::Binary), payload, mask, &mut out);
    out
}

/// A close frame, ready for the socket. `None` closes without a code.
#[must_use]
pub fn close_frame(code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
        payload.truncate(CONTROL_PAYLOAD_BYTES_MAX);
    }
    let mut out = Vec::new();
    encode(OpCode::Control(Control::Close), &payload, mask, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// What a decoder made of some bytes, as owned values.
    fn decode(chunks: &[&[u8]], max: u32) -> (Vec<String>, Option<Violation>) {
        let mut decoder = Decoder::new(Role::Server, max);
        let mut seen = Vec::new();
        for chunk in chunks {
            let result = decoder.feed(&mut chunk.to_vec(), &mut |event| seen.push(format!("{event:?}")));
            if let Err(violation) = result {
                return (seen, Some(violation));
            }
        }
        (seen, None)
    }

    /// A masked frame with a hand-made first byte.
    fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first, 0x80 | u8::try_from(payload.len()).expect("short")];
        out.extend_from_slice(&MASK);
        let start = out.len();
        out.extend_from_slice(payload);
        apply_mask(&mut out[start..], MASK);
        out
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let bytes = [raw(0x01, "hé".as_bytes()), raw(0x89, b"p"), raw(0x80, b"llo")].concat();
        let (seen, violation) = decode(&[&bytes], 100);
        assert_eq!(seen, ["Ping([112])", "Text(\"héllo\")"]);
        assert_eq!(violation, None);
    }

    #[test]
    fn a_character_may_be_cut_by_a_fragment_but_not_broken() {
        let bytes = [raw(0x01, &[0xc3]), raw(0x80, &[0xa9])].concat();
        assert_eq!(decode(&[&bytes], 100).0, ["Text(\"é\")"]);
        let broken = [raw(0x01, &[0xc3]), raw(0x00, &[0x28])].concat();
        assert_eq!(decode(&[&broken], 100).1.map(|v| v.code), Some(CloseCode::InvalidText));
    }

    #[test]
    fn each_violation_has_its_code() {
        let masked_text = text_frame("x", Some(MASK));
        let unmasked = text_frame("x", None);
        let cases: Vec<(&str, Vec<u8>, CloseCode)> = vec![
            ("reserved bit", raw(0xc1, b"x"), CloseCode::Protocol),
            ("reserved data opcode", raw(0x83, b"x"), CloseCode::Protocol),
            ("reserved control opcode", raw(0x8b, b"x"), CloseCode::Protocol),
            ("fragmented control", raw(0x09, b"x"), CloseCode::Protocol),
            ("lone continuation", raw(0x80, b"x"), CloseCode::Protocol),
            ("message inside a message", [raw(0x01, b"a"), masked_text].concat(), CloseCode::Protocol),
            ("unmasked", unmasked, CloseCode::Protocol),
            ("invalid text", raw(0x81, &[0xff]), CloseCode::InvalidText),
            ("one byte close", raw(0x88, &[3]), CloseCode::Protocol),
            ("close 1005", raw(0x88, &1005_u16.to_be_bytes()), CloseCode::Protocol),
            ("close reason", raw(0x88, &[3, 0xe8, 0xff]), CloseCode::InvalidText),
            ("too big", raw(0x82, &[0; 101]), CloseCode::TooBig),
            ("too big in parts", [raw(0x02, &[0; 60]), raw(0x80, &[0; 60])].concat(), CloseCode::TooBig),
            ("huge control", vec![0x89, 0xfe, 0, 200, 1, 2, 3, 4], CloseCode::Protocol),
            ("long form of a short length", vec![0x81, 0xfe, 0, 5, 1, 2, 3, 4], CloseCode::Protocol),
            ("64-bit length", vec![0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4], CloseCode::TooBig),
        ];
        for (name, bytes, code) in cases {
            assert_eq!(decode(&[&bytes], 100).1.map(|v| v.code), Some(code), "{name}");
        }
    }

    #[test]
    fn nothing_is_held_while_idle() {
        let mut decoder = Decoder::new(Role::Server, 1000);
        let bytes = text_frame("hello", Some(MASK));
        let (head, tail) = bytes.split_at(3);
        decoder.feed(&mut head.to_vec(), &mut |_| panic!("not whole")).expect("valid");
        assert!(decoder.is_mid_message());
        let mut count = 0;
        decoder.feed(&mut tail.to_vec(), &mut |_| count += 1).expect("valid");
        assert_eq!(count, 1);
        assert!(!decoder.is_mid_message() && decoder.partial.capacity() == 0);
    }

    #[test]
    fn what_comes_after_a_close_is_ignored() {
        let bytes = [close_frame(Some(1000), "bye", Some(MASK)), raw(0xff, b"x")].concat();
        let (seen, violation) = decode(&[&bytes], 100);
        assert_eq!((seen, violation), (vec!["Close(Some(1000))".to_owned()], None));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_messages(
            texts in prop::collection::vec(".{0,300}", 1..6), cuts in prop::collection::vec(1_usize..40, 1..60),
        ) {
            let bytes: Vec<u8> = texts.iter().flat_map(|t| text_frame(t, Some(MASK))).collect();
            let mut chunks = Vec::new();
            let mut rest = bytes.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (head, tail) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            let (seen, violation) = decode(&chunks, 10_000);
            prop_assert_eq!(violation, None);
            let expected: Vec<String> = texts.iter().map(|t| format!("Text({t:?})")).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes], 1000);
        }
    }
}

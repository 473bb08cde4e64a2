//! All modes. A new check of the judge gets a mode here; each is a lie and what must be said of it.

mod acks;
mod answers;
mod content;
mod deliveries;
mod forgeries;
mod ids;
mod presence;
mod rights;
mod sockets;
mod sound;

use chatctl::protocol::{MessageFrame, ServerFrame};

use crate::mode::Mode;

/// Every mode.
pub(crate) fn all() -> impl Iterator<Item = &'static Mode> {
    let lies = [
        deliveries::MODES,
        ids::MODES,
        acks::MODES,
        content::MODES,
        forgeries::MODES,
        rights::MODES,
        presence::MODES,
        answers::MODES,
        sockets::MODES,
    ];
    lies.into_iter().chain([sound::MODES]).flatten()
}

/// The message that a frame carries.
fn message_of(frame: &ServerFrame) -> Option<&MessageFrame> {
    if let ServerFrame::Message(message) = frame { Some(message) } else { None }
}

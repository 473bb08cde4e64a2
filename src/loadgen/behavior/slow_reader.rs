//! Reads too slowly for what it is sent, so that the server has to queue or drop.

use super::{Attendance, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "slow-reader",
    about: "reads, then not at all for `read_pause`",
    talks: Talks::Nowhere,
    attendance: Attendance::Stays,
    reading: Reading::Paused,
};

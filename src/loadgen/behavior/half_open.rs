//! Loses its network as a phone does: the server is not told, and has to find out.

use super::{Attendance, Leave, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "half-open",
    about: "vanishes with its socket left open and comes back on a new one, at the times of `flapper`",
    talks: Talks::Nowhere,
    attendance: Attendance::ComesAndGoes {
        online: |times| times.online,
        away: |times| times.away,
        leave: Leave::Vanish,
    },
    reading: Reading::Prompt,
};

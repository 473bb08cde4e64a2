//! Is there to be seen coming and going.

use super::{Attendance, Leave, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "presence-only",
    about: "sends heartbeats only, and stays away long enough to be seen offline",
    talks: Talks::Nowhere,
    attendance: Attendance::ComesAndGoes {
        online: |times| times.online,
        away: |times| times.presence_away,
        leave: Leave::Close,
    },
    reading: Reading::Prompt,
};

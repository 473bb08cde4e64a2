//! Talks in groups and channels.

use super::{Attendance, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "group-talker",
    about: "sends in groups",
    talks: Talks::Groups,
    attendance: Attendance::Stays,
    reading: Reading::Prompt,
};

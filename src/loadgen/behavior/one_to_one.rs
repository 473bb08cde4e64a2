//! Talks with one other person at a time.

use super::{Attendance, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "one-to-one",
    about: "sends in one-to-one conversations",
    talks: Talks::Direct,
    attendance: Attendance::Stays,
    reading: Reading::Prompt,
};

//! Stays connected and says nothing.

use super::{Attendance, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "lurker",
    about: "reads only",
    talks: Talks::Nowhere,
    attendance: Attendance::Stays,
    reading: Reading::Prompt,
};

//! Figures for people.

/// A duration in µs with a unit that suits it: `850 µs`, `12.3 ms`, `4.56 s`.
#[must_use]
pub fn human_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Bytes with a unit that suits them.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A count with spaces between the thousands.
#[must_use]
pub fn human_count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A count with its noun, which is given for one: `1 run`, `2 runs`, `1 200 deliveries`, `3 processes`.
#[must_use]
pub fn counted(n: u64, one: &str) -> String {
    let number = human_count(n);
    if n == 1 {
        return format!("{number} {one}");
    }
    let is_vowel = |c: char| matches!(c, 'a' | 'e' | 'i' | 'o' | 'u');
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(is_vowel) => format!("{number} {stem}ies"),
        _ if one.ends_with('s') || one.ends_with('x') => format!("{number} {one}es"),
        _ => format!("{number} {one}s"),
    }
}

/// A measured value: whole ones as such, others with three places.
#[must_use]
pub fn human_value(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(
            [0, 999, 1_500, 250_000, 12_345_678].map(human_us),
            ["0 µs", "999 µs", "1.5 ms", "250 ms", "12.35 s"]
        );
        assert_eq!([5, 2_048, 3 << 20].map(human_bytes), ["5 B", "2.0 KiB", "3.0 MiB"]);
        assert_eq!([7, 1_000, 1_234_567].map(human_count), ["7", "1 000", "1 234 567"]);
        let nouns = [(0, "run"), (1, "run"), (1_200, "delivery"), (2, "process"), (2, "key"), (1, "delivery")];
        let wanted = ["0 runs", "1 run", "1 200 deliveries", "2 processes", "2 keys", "1 delivery"];
        assert_eq!(nouns.map(|(n, one)| counted(n, one)), wanted);
        assert_eq!([0.0, 3.0, 0.25, 509.4391].map(human_value), ["0", "3", "0.250", "509.439"]);
    }
}

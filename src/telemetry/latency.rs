//! Latency histograms in microseconds.

use std::io::Read;

use super::human::human_us;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as HistogramReader, Serializer as _, V2DeflateSerializer};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest latency that is told apart, in µs: one hour. Longer ones count as this.
pub const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Three significant digits: an error of at most 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Most samples of a histogram that is read: sums of a thousand such still fit 64 bits.
const READ_SAMPLES_MAX: u64 = 10_000_000_000_000_000;

/// Most bytes of a histogram's text form: 40,000 counters of nine bytes, deflated or not.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Most digits and largest value that a histogram that is read may tell apart: 26 MB of counters. They stand in its head, and
/// the memory for them is taken before the first count is read.
const READ_DIGITS_MAX: u32 = 5;
const READ_VALUE_MAX: u64 = 1 << 42;

/// Digits and largest value that a histogram claims to tell apart; `None` where it has no head.
fn claimed_size(bytes: &[u8]) -> Option<(u32, u64)> {
    /// First word of the V2 form, plain and deflated.
    const PLAIN: u32 = 0x1c84_9313;
    const DEFLATED: u32 = 0x1c84_9314;
    let four = |bytes: &[u8], at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut head = [0; 32];
    match four(bytes, 0)? {
        PLAIN => head.copy_from_slice(bytes.get(..32)?),
        DEFLATED => ZlibDecoder::new(bytes.get(8..)?).read_exact(&mut head).ok()?,
        _ => return None,
    }
    let highest = (u64::from(four(&head, 24)?) << 32) | u64::from(four(&head, 28)?);
    Some((four(&head, 12)?, highest))
}

/// Latencies of one kind. Merged, never averaged.
///
/// As text it is the V2 form of the `HdrHistogram` project, deflated, in base 64: what stands in `.hlog` files.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency(Histogram<u64>);

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.to_bytes().map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&BASE64.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(D::Error::custom(format!("a histogram of {} bytes: at most {TEXT_BYTES_MAX}", text.len())));
        }
        let bytes = BASE64.decode(text).map_err(|e| D::Error::custom(format!("not a histogram: {e}")))?;
        Self::from_bytes(&bytes).map_err(D::Error::custom)
    }
}

impl Default for Latency {
    fn default() -> Self {
        let mut histogram = Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are valid");
        histogram.auto(true);
        Self(histogram)
    }
}

impl Latency {
    /// The V2 form, deflated.
    ///
    /// # Errors
    /// Says why it can't be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let written = V2DeflateSerializer::new().serialize(&self.0, &mut bytes);
        written.map_err(|e| format!("histogram: {e:?}"))?;
        Ok(bytes)
    }

    /// Reads that form.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, String> {
        if let Some((digits, highest)) = claimed_size(bytes)
            && (digits > READ_DIGITS_MAX || highest > READ_VALUE_MAX)
        {
            return Err(format!("not a histogram of latencies: values up to {highest} with {digits} digits"));
        }
        let read: Result<Histogram<u64>, _> = HistogramReader::new().deserialize(&mut bytes);
        let read = read.map_err(|e| format!("not a histogram: {e:?}"))?;
        // The reader's own sum stops at the largest number.
        if read.len() > READ_SAMPLES_MAX {
            return Err(format!("not a histogram of latencies: more than {READ_SAMPLES_MAX} samples"));
        }
        // One of another make may have other limits; its counts are taken over.
        let mut latency = Self::default();
        latency.0.add(&read).map_err(|e| format!("not a histogram of latencies: {e:?}"))?;
        Ok(latency)
    }

    /// Adds one latency, in µs.
    pub fn record_us(&mut self, us: u64) {
        self.0.record(us.clamp(1, LATENCY_US_MAX)).expect("the histogram grows up to the clamp");
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the histogram grows");
    }

    /// What is left without those of another, which are all among these; `None` where they are not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Option<Self> {
        let mut left = self.0.clone();
        left.subtract(&other.0).ok()?;
        Some(Self(left))
    }

    /// Adds `count` latencies of `us` each.
    pub fn record_many_us(&mut self, us: u64, count: u64) {
        self.0.record_n(us.clamp(1, LATENCY_US_MAX), count).expect("the histogram grows up to the clamp");
    }

    /// How many lie above `us`.
    #[must_use]
    pub fn count_above_us(&self, us: u64) -> u64 {
        self.0.len() - self.0.count_between(0, us.min(LATENCY_US_MAX))
    }

    /// The different latencies with their numbers, rising.
    pub fn values_us(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value below which `percent` of the latencies lie, in µs; 0 when there are none.
    #[must_use]
    pub fn percentile_us(&self, percent: f64) -> u64 {
        self.0.value_at_percentile(percent)
    }

    /// The largest, in µs; 0 when there are none.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.0.max()
    }

    /// The histogram itself, for the `.hlog` writer.
    #[must_use]
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// The figures that reports show.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        LatencySummary {
            count: self.0.len(),
            min_us: if self.0.is_empty() { 0 } else { self.0.min() },
            mean_us: self.0.mean(),
            p50_us: self.percentile_us(50.0),
            p75_us: self.percentile_us(75.0),
            p90_us: self.percentile_us(90.0),
            p95_us: self.percentile_us(95.0),
            p99_us: self.percentile_us(99.0),
            p999_us: self.percentile_us(99.9),
            max_us: self.0.max(),
        }
    }
}

/// Percentiles of a histogram, in µs, with the number of samples behind them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_us: u64,
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: u64,
    /// 75th percentile.
    #[serde(default)]
    pub p75_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 95th percentile.
    #[serde(default)]
    pub p95_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// A percentile of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Percentile {
    /// The median.
    P50,
    /// 75 %.
    P75,
    /// 90 %.
    P90,
    /// 95 %.
    P95,
    /// 99 %.
    P99,
    /// 99.9 %.
    P999,
}

impl Percentile {
    /// All of them, rising.
    pub const ALL: [Self; 6] = [Self::P50, Self::P75, Self::P90, Self::P95, Self::P99, Self::P999];

    /// What it is called in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P75 => "p75",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }

    /// Samples without which there is none: at least one has to lie above it.
    #[must_use]
    pub const fn samples_min(self) -> u64 {
        match self {
            Self::P50 => 2,
            Self::P75 => 4,
            Self::P90 => 10,
            Self::P95 => 20,
            Self::P99 => 100,
            Self::P999 => 1_000,
        }
    }
}

/// Shown where there are too few samples for a figure.
pub const TOO_FEW: &str = "-";

impl LatencySummary {
    /// A percentile in µs, however few the samples are.
    #[must_use]
    pub const fn percentile_us(&self, percentile: Percentile) -> u64 {
        match percentile {
            Percentile::P50 => self.p50_us,
            Percentile::P75 => self.p75_us,
            Percentile::P90 => self.p90_us,
            Percentile::P95 => self.p95_us,
            Percentile::P99 => self.p99_us,
            Percentile::P999 => self.p999_us,
        }
    }

    /// A percentile in µs; `None` where the samples are too few for it.
    #[must_use]
    pub fn known_us(&self, percentile: Percentile) -> Option<u64> {
        (self.count >= percentile.samples_min()).then(|| self.percentile_us(percentile))
    }

    /// A percentile for people: [`TOO_FEW`] where the samples are too few for it.
    #[must_use]
    pub fn shown(&self, percentile: Percentile) -> String {
        self.known_us(percentile).map_or_else(|| TOO_FEW.to_owned(), human_us)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    #[test]
    fn percentiles_are_of_the_merged_samples() {
        let (mut a, mut b) = (Latency::default(), Latency::default());
        (0..99).for_each(|_| a.record_us(1_000));
        b.record_us(500_000);
        a.merge(&b);
        let summary = a.summary();
        assert_eq!((summary.count, summary.max_us / 1_000), (100, 500));
        assert!(summary.p50_us.abs_diff(1_000) <= 1);
    }

    #[test]
    fn a_percentile_of_too_few_samples_is_not_shown() {
        for percentile in Percentile::ALL {
            let of = |count| {
                let mut latency = Latency::default();
                latency.record_many_us(900, count);
                latency.summary().shown(percentile)
            };
            let needs = percentile.samples_min();
            assert_eq!((of(needs - 1).as_str(), of(needs).as_str()), (TOO_FEW, "900 µs"), "{}", percentile.name());
        }
    }

    #[test]
    fn the_text_form_reads_back_and_rubbish_does_not() {
        let mut latency = Latency::default();
        latency.record_us(1_500);
        latency.record_many_us(70_000, 9);
        let text = serde_json::to_string(&latency).expect("plain text");
        let back: Latency = serde_json::from_str(&text).expect("reads back");
        assert_eq!(back.summary(), latency.summary());
        assert_eq!(back.count_above_us(2_000), 9);
        for rubbish in ["\"\"", "\"AAAA\"", "\"no base 64\"", "7"] {
            assert!(serde_json::from_str::<Latency>(rubbish).is_err(), "{rubbish}");
        }
    }

    #[test]
    fn a_histogram_that_claims_gigabytes_is_refused_before_they_are_taken() {
        let claiming = |digits: u32, highest: u64| {
            let mut head = Vec::new();
            head.extend([0x1c84_9313, 1, 0, digits].iter().flat_map(|word| word.to_be_bytes()));
            head.extend([1, highest].iter().flat_map(|value| value.to_be_bytes()));
            head.extend(1.0_f64.to_be_bytes());
            head.push(0);
            head
        };
        let deflated = |plain: &[u8]| {
            let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
            zlib.write_all(plain).expect("writes");
            let packed = zlib.finish().expect("writes");
            [&0x1c84_9314_u32.to_be_bytes(), &(packed.len() as u32).to_be_bytes(), packed.as_slice()].concat()
        };
        let large = claiming(5, u64::MAX / 2);
        for bytes in [large.clone(), deflated(&large), claiming(9, 1_000), deflated(&claiming(1, 1 << 43))] {
            assert!(Latency::from_bytes(&bytes).is_err_and(|why| why.contains("digits")), "{bytes:?}");
        }
        assert_eq!(claimed_size(&Latency::default().to_bytes().expect("writes")).map(|(digits, _)| digits), Some(3));
        assert_eq!(Latency::from_bytes(&deflated(&claiming(2, 1 << 30))).map(|latency| latency.count()), Ok(0));
    }

    #[test]
    fn a_histogram_whose_counts_do_not_add_up_to_a_number_is_refused() {
        let mut forged = Histogram::<u64>::new(SIGNIFICANT_DIGITS).expect("valid");
        forged.auto(true);
        for us in [1, 1_000, 50_000, 9_000_000] {
            forged.record_n(us, i64::MAX as u64).expect("grows");
        }
        let bytes = Latency(forged).to_bytes().expect("writes");
        assert!(Latency::from_bytes(&bytes).is_err_and(|why| why.contains("samples")));
        let mut large = Latency::default();
        large.record_many_us(1_000, READ_SAMPLES_MAX);
        assert_eq!(Latency::from_bytes(&large.to_bytes().expect("writes")), Ok(large));
    }

    #[test]
    fn what_is_left_is_what_the_others_do_not_have() {
        let (mut all, mut some) = (Latency::default(), Latency::default());
        all.record_many_us(1_000, 3);
        all.record_us(2_000_000);
        some.record_many_us(1_000, 2);
        let left = all.without(&some).expect("they are among them");
        assert_eq!((left.count(), left.count_above_us(1_500)), (2, 1));
        assert_eq!(some.without(&all), None);
    }

    #[test]
    fn an_empty_histogram_says_zero() {
        assert_eq!(Latency::default().summary(), LatencySummary::default());
    }
}

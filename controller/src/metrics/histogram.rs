//! A histogram of a few buckets, for what happens at most some thousand times a second.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counts values up to each of some bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// By bound; the last is for what is beyond all of them.
    buckets: Vec<AtomicU64>,
    /// Bits of a number.
    sum: AtomicU64,
}

impl Histogram {
    /// An empty one. `bounds`: upper ones, each belongs to its bucket, in rising order.
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// One more value.
    pub fn add(&self, value: f64) {
        let more = |sum: u64| Some((f64::from_bits(sum) + value).to_bits());
        let _ = self.sum.fetch_update(Relaxed, Relaxed, more);
        if let Some(count) = self.buckets.get(self.bounds.partition_point(|bound| *bound < value)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Its lines of a page, without the head. `labels`: as `type="wds"`; may be empty.
    pub fn render(&self, out: &mut String, name: &str, labels: &str) {
        let (comma, braces) = match labels {
            "" => ("", String::new()),
            _ => (",", format!("{{{labels}}}")),
        };
        let bounds = self.bounds.iter().map(ToString::to_string).chain(["+Inf".to_string()]);
        let mut count = 0;
        for (bound, in_bucket) in bounds.zip(&self.buckets) {
            count += in_bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(
            out,
            "{name}_sum{braces} {}\n{name}_count{braces} {count}",
            f64::from_bits(self.sum.load(Relaxed))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket() {
        let all = Histogram::new(&[0.1, 1.0]);
        [0.1, 0.5, 1.0, 7.0].into_iter().for_each(|value| all.add(value));
        let mut page = String::new();
        all.render(&mut page, "x", "type=\"t\"");
        all.render(&mut page, "y", "");
        for line in [
            "x_bucket{type=\"t\",le=\"0.1\"} 1\n",
            "x_bucket{type=\"t\",le=\"1\"} 3\n",
            "x_bucket{type=\"t\",le=\"+Inf\"} 4\n",
            "x_sum{type=\"t\"} 8.6\n",
            "x_count{type=\"t\"} 4\n",
            "y_bucket{le=\"+Inf\"} 4\n",
            "y_count 4\n",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }
}

//! A histogram of a few buckets, for what happens at most some thousand times a second.

use karst_rt::exposition::Family;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

    /// Its lines of a page. `labels`: as [`karst_rt::exposition::labels`] writes them; may be empty.
    pub fn render(&self, family: &mut Family<'_>, labels: &str) {
        let counts = self.buckets.iter().map(|count| count.load(Relaxed));
        family.histogram(labels, self.bounds, counts, f64::from_bits(self.sum.load(Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::exposition::{self, Kind};

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket() {
        let all = Histogram::new(&[0.1, 1.0]);
        [0.1, 0.5, 1.0, 7.0].into_iter().for_each(|value| all.add(value));
        let page = exposition::page(|page| {
            all.render(&mut page.family("x", Kind::Histogram, "X."), "type=\"t\"");
            all.render(&mut page.family("y", Kind::Histogram, "Y."), "");
        });
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

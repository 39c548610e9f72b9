//! One figure over all rounds.

use std::fmt;

pub struct Spread {
    low: f64,
    pub median: f64,
    high: f64,
}

impl Spread {
    pub fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = figures.collect();
        all.sort_by(f64::total_cmp);
        Self { low: all[0], median: all[all.len() / 2], high: all[all.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.2} to {:.2})", self.median, self.low, self.high)
    }
}

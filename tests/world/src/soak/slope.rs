//! Is memory flat? A line through the samples by least squares, and what its slope is worth.

/// A line, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The mean of all samples.
    pub mean: f64,
    /// What the line gains from the first sample to the last.
    pub growth: f64,
    /// The standard error of that growth.
    pub error: f64,
}

/// Growth of which nothing is said, in MiB beside a twentieth of the mean: what an allocator keeps.
const SLACK_MIB: f64 = 1.0;
/// Growth within so many standard errors is noise. (Samples that follow each other are alike, which makes the error look smaller
/// than it is: hence not two.)
const ERRORS: f64 = 4.0;

/// Through samples of (seconds, MiB). None: fewer than three, or all at one time.
pub fn fit(samples: &[(f64, f64)]) -> Option<Line> {
    if samples.len() < 3 {
        return None;
    }
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|s| s.0), mean(|s| s.1));
    let spread: f64 = samples.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if spread <= 0.0 {
        return None;
    }
    let slope = samples.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let rest: f64 = samples.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
    let error = (rest / (count - 2.0) / spread).sqrt();
    let (first, last) = samples.iter().fold((f64::MAX, f64::MIN), |(a, b), (x, _)| (a.min(*x), b.max(*x)));
    Some(Line { mean: mean_y, growth: slope * (last - first), error: error * (last - first) })
}

impl Line {
    /// The most growth that counts as none.
    pub fn bound(&self) -> f64 {
        (ERRORS * self.error).max(SLACK_MIB + self.mean / 20.0)
    }

    /// Is its growth within that? What shrinks is flat.
    pub fn is_flat(&self) -> bool {
        self.growth <= self.bound()
    }
}

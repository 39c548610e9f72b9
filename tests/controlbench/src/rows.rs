//! The rows of what was measured.

use anyhow::Result;
use serde_json::json;
use std::{fs, path::Path};

/// What was measured, its unit, the figure, and what it should be at most (or nothing).
pub type Row = (&'static str, &'static str, f64, Option<f64>);

/// Prints what was measured.
pub fn tell(rows: &[Row], report: Option<&Path>) -> Result<()> {
    println!("\n{:<36} {:>10} {:<8} {:>8}", "what", "measured", "unit", "goal");
    for (what, unit, v, goal) in rows {
        let goal = goal.map(|g| g.to_string()).unwrap_or_default();
        println!("{what:<36} {v:>10.2} {unit:<8} {goal:>8}");
    }
    if let Some(path) = report {
        let row = |(case, unit, v, _): &Row| json!({ "case": case.trim(), "variant": "karst", "unit": unit, "median": v, "low": v, "high": v });
        fs::write(path, serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?)?;
    }
    Ok(())
}

/// Of values in order.
pub fn at_quantile(values: &[f64], q: f64) -> f64 {
    values.get((values.len().saturating_sub(1) as f64 * q) as usize).copied().unwrap_or(f64::NAN)
}

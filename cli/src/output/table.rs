//! Tables: columns as wide as their widest cell, three spaces between them, colours only where a cell has a meaning.

use std::time::Duration;

/// Spaces between two columns.
const GAP: usize = 3;

/// What a cell means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Broken.
    Bad,
}

impl Tone {
    /// A text in the colour of the meaning, if it may have one.
    pub fn paint(self, text: &str, colour: bool) -> String {
        match self.sequence() {
            "" => text.to_owned(),
            _ if !colour => text.to_owned(),
            sequence => format!("{sequence}{text}\u{1b}[0m"),
        }
    }
    fn sequence(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\u{1b}[32m",
            Self::Warning => "\u{1b}[33m",
            Self::Bad => "\u{1b}[31m",
        }
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// With a meaning.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With these columns.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: vec![] }
    }
    /// Adds a row; what it lacks of the columns is empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }
    /// Sorts by the texts of the first columns, then the following ones.
    pub fn sort(&mut self) {
        self.rows.sort_by(|a, b| a.iter().map(|cell| &cell.text).cmp(b.iter().map(|cell| &cell.text)));
    }
    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// The table as text, a line for each row.
    pub fn render(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells =
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| shown(&cell.text).chars().count());
            cells.chain(self.head.get(column).map(|name| name.chars().count())).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut out = String::new();
        let head: Vec<Cell> = self.head.iter().map(|name| Cell::from(*name)).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let text = shown(&cell.text);
                let padding = " ".repeat((width + GAP).saturating_sub(text.chars().count()));
                let sequence = if colour { cell.tone.sequence() } else { "" };
                let reset = if sequence.is_empty() { "" } else { "\u{1b}[0m" };
                line.push_str(&format!("{sequence}{text}{reset}{padding}"));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Peers' text cannot move the cursor or begin a new row.
pub fn shown(text: &str) -> String {
    if text.is_empty() {
        return "-".into();
    }
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// A duration as kubectl writes ages: the largest unit, and the next while the number is small.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(["a-long-name".into(), Cell::new("ok", Tone::Good)]);
        table.row(["b".into(), "".into()]);
        assert_eq!(table.render(false), "NAME          STATUS\na-long-name   ok\nb             -\n");
        assert!(table.render(true).contains("a-long-name   \u{1b}[32mok\u{1b}[0m"));
    }

    #[test]
    fn a_cell_cannot_break_out_of_its_row() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\nb\u{1b}[2J".into()]);
        assert_eq!(table.render(false), "NAME\na\u{fffd}b\u{fffd}[2J\n");
    }

    #[test]
    fn ages_have_one_unit() {
        let all = [5, 119, 120, 7200, 172_800].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(all, ["5s", "119s", "2m", "2h", "2d"]);
    }
}

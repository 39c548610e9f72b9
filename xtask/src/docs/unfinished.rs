//! Figures that are still to come: who writes a page before its run leaves a mark there, and no reader is to see it.

use std::path::Path;

/// What such a mark begins with; what the figure is of follows.
const MARK: &str = "<<FIGURE";

/// The marks that are left on a page, with their lines.
pub(super) fn find(path: &Path, text: &str) -> Vec<String> {
    let marked = text.lines().enumerate().filter(|(_, line)| line.contains(MARK));
    marked.map(|(at, line)| format!("{}:{}: a figure is missing: {}", path.display(), at + 1, line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_in_place_of_a_figure_is_found() {
        let text = "It takes 3 ms.\n  `<<FIGURE kills>>` of them fall between.\n    kubectl apply -f - <<'EOF'\n| <<FIGURE |\n";
        let faults = find(Path::new("docs/p.md"), text);
        let wanted = [
            "docs/p.md:2: a figure is missing: `<<FIGURE kills>>` of them fall between.",
            "docs/p.md:4: a figure is missing: | <<FIGURE |",
        ];
        assert_eq!(faults, wanted);
    }
}

//! What may have been meant by a wrong name.

/// The known name that is nearest to a wrong one, if it is near enough to be meant.
pub fn nearest<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let far = wrong.len() / 2 + 1;
    let found = known.into_iter().map(|name| (distance(wrong, name), name)).min()?;
    (found.0 <= far).then_some(found.1)
}

/// Letters to add, remove or replace (Levenshtein), without regard to case.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, from) in left.to_lowercase().chars().enumerate() {
        let mut next = vec![at + 1];
        for (column, to) in right.iter().enumerate() {
            let replaced = row.get(column).copied().unwrap_or_default() + usize::from(from != *to);
            let removed = row.get(column + 1).copied().unwrap_or_default() + 1;
            let added = next.last().copied().unwrap_or_default() + 1;
            next.push(replaced.min(removed).min(added));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_none_for_nonsense() {
        assert_eq!(nearest("replicaCont", ["replicaCount", "resources"]), Some("replicaCount"));
        assert_eq!(nearest("xyzzy", ["replicaCount", "resources"]), None);
        assert_eq!(nearest("anything", []), None);
    }
}

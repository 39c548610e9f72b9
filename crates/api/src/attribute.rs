//! The attributes of policies ([`karst_policy::attribute`]) on the wire: by their numbers, which that table has.

use crate::route;
use karst_policy::Attribute as A;

impl From<A> for route::Attribute {
    /// One without a number on the wire is unknown there: an ALLOW never matches it, and a DENY always.
    fn from(a: A) -> Self {
        Self::try_from(a as i32).unwrap_or(Self::Unknown)
    }
}

impl route::Attribute {
    /// What it means. None: this version does not know it.
    pub fn known(self) -> Option<A> {
        A::ALL.into_iter().find(|a| Self::from(*a) == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ServiceAccount` as protobuf writes it: `SERVICE_ACCOUNT`.
    fn shouted(name: &str) -> String {
        let letters = name.chars().enumerate();
        let word = |(at, c): (usize, char)| if at > 0 && c.is_uppercase() { format!("_{c}") } else { c.to_string() };
        letters.map(word).collect::<String>().to_uppercase()
    }

    #[test]
    fn every_attribute_goes_over_the_wire_and_back() {
        for a in A::ALL {
            assert_eq!(route::Attribute::from(a).known(), Some(a));
            assert_eq!(route::Attribute::from(a).as_str_name(), shouted(&format!("{a:?}")), "the numbers agree");
        }
        let unknown: Vec<i32> =
            (0..64).filter(|n| route::Attribute::try_from(*n).is_ok_and(|a| a.known().is_none())).collect();
        assert_eq!(unknown, [route::Attribute::Unknown as i32]);
    }
}

//! The attributes of policies ([`karst_policy::attribute`]) on the wire.

use crate::route;
use karst_policy::Attribute as A;

impl From<A> for route::Attribute {
    fn from(a: A) -> Self {
        match a {
            A::Principal => Self::Principal,
            A::Namespace => Self::Namespace,
            A::ServiceAccount => Self::ServiceAccount,
            A::TrustDomain => Self::TrustDomain,
            A::SourceIp => Self::SourceIp,
            A::RemoteIp => Self::RemoteIp,
            A::DestinationIp => Self::DestinationIp,
            A::Port => Self::Port,
            A::Sni => Self::Sni,
            A::Host => Self::Host,
            A::Method => Self::Method,
            A::Path => Self::Path,
            A::Header => Self::Header,
            A::RequestPrincipal => Self::RequestPrincipal,
            A::Claim => Self::Claim,
            A::Audience => Self::Audience,
            A::Presenter => Self::Presenter,
        }
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

    #[test]
    fn every_attribute_goes_over_the_wire_and_back() {
        for a in A::ALL {
            assert_eq!(route::Attribute::from(a).known(), Some(a));
        }
        let unknown: Vec<i32> =
            (0..64).filter(|n| route::Attribute::try_from(*n).is_ok_and(|a| a.known().is_none())).collect();
        assert_eq!(unknown, [route::Attribute::Unknown as i32]);
    }
}

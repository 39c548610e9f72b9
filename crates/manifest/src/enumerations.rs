//! Fields that are one of a few words, as types: who decides by one says what becomes of each, and of a word that is
//! not known. (The fields themselves stay text: what cannot be read is told of with the words that were written.)

use crate::{authorization::AuthorizationPolicySpec, service_entry::ServiceEntrySpec, traffic::GwTls};

/// What an AuthorizationPolicy does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction<'a> {
    /// Lets it in; the default.
    Allow,
    /// Refuses it.
    Deny,
    /// Tells of it.
    Audit,
    /// Asks somebody else.
    Custom,
    /// A word that is none of these.
    Unknown(&'a str),
}

impl AuthorizationPolicySpec {
    /// What it does with what it matches.
    pub fn action(&self) -> PolicyAction<'_> {
        match self.action.as_deref() {
            None | Some("ALLOW") => PolicyAction::Allow,
            Some("DENY") => PolicyAction::Deny,
            Some("AUDIT") => PolicyAction::Audit,
            Some("CUSTOM") => PolicyAction::Custom,
            Some(other) => PolicyAction::Unknown(other),
        }
    }
}

/// Where the endpoints of a ServiceEntry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// At the address that is called; the default.
    None,
    /// At the addresses that are listed.
    Static,
    /// At what the names that are listed resolve to, all of it.
    Dns,
    /// At what the name resolves to, one address at a time.
    DnsRoundRobin,
    /// At what the host of each request resolves to.
    DynamicDns,
    /// A word that is none of these.
    Unknown(&'a str),
}

impl Resolution<'_> {
    /// Are names looked up that are known beforehand?
    pub fn is_dns(self) -> bool {
        match self {
            Resolution::Dns | Resolution::DnsRoundRobin => true,
            Resolution::None | Resolution::Static | Resolution::DynamicDns | Resolution::Unknown(_) => false,
        }
    }
}

impl ServiceEntrySpec {
    /// Where its endpoints are.
    pub fn resolution(&self) -> Resolution<'_> {
        match self.resolution.as_str() {
            "" | "NONE" => Resolution::None,
            "STATIC" => Resolution::Static,
            "DNS" => Resolution::Dns,
            "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
            "DYNAMIC_DNS" => Resolution::DynamicDns,
            other => Resolution::Unknown(other),
        }
    }
}

/// What a server of Istio's Gateway does with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTlsMode<'a> {
    /// It goes on as it is; the default.
    Passthrough,
    /// It ends here.
    Simple,
    /// It ends here, and clients show certificates.
    Mutual,
    /// It ends here, and clients may show certificates.
    OptionalMutual,
    /// A word that is none of these.
    Unknown(&'a str),
}

impl GwTls {
    /// What is done with TLS.
    pub fn mode(&self) -> ServerTlsMode<'_> {
        match self.mode.as_deref() {
            None | Some("PASSTHROUGH") => ServerTlsMode::Passthrough,
            Some("SIMPLE") => ServerTlsMode::Simple,
            Some("MUTUAL") => ServerTlsMode::Mutual,
            Some("OPTIONAL_MUTUAL") => ServerTlsMode::OptionalMutual,
            Some(other) => ServerTlsMode::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_the_default_and_other_words_are_kept() {
        let action =
            |text: Option<&str>| AuthorizationPolicySpec { action: text.map(String::from), ..Default::default() };
        assert_eq!(action(None).action(), PolicyAction::Allow);
        assert_eq!(action(Some("AUDIT")).action(), PolicyAction::Audit);
        assert_eq!(action(Some("deny")).action(), PolicyAction::Unknown("deny"));
        let resolution = |text: &str| ServiceEntrySpec { resolution: text.into(), ..Default::default() };
        assert_eq!(resolution("").resolution(), Resolution::None);
        assert!(
            resolution("DNS_ROUND_ROBIN").resolution().is_dns() && !resolution("DYNAMIC_DNS").resolution().is_dns()
        );
        assert_eq!(resolution("dns").resolution(), Resolution::Unknown("dns"));
        let mode = |text: Option<&str>| GwTls { mode: text.map(String::from), ..Default::default() };
        assert_eq!(mode(None).mode(), ServerTlsMode::Passthrough);
        assert_eq!(mode(Some("AUTO_PASSTHROUGH")).mode(), ServerTlsMode::Unknown("AUTO_PASSTHROUGH"));
    }
}

//! What every request is looked at for: its headers, the site that sends it, and secrets in it.

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, ORIGIN},
};

/// The secret, of a process or a session. A header, since no other site can send one of its own.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-karst-token");
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The status to answer with, and why.
pub(super) type Refused = (StatusCode, &'static str);

/// 256 bits by the system's generator.
pub(super) fn random() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In a time that does not tell where they differ.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// A header; empty if it is there twice, or is no text.
pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    // Twice the same header is nobody's browser.
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    Some(if all.next().is_some() { "" } else { first.to_str().unwrap_or_default() })
}

/// Is it sent by a page of the host that it is for, by one of these schemes (`http://`)?
pub(super) fn own_site(headers: &HeaderMap, host: &str, schemes: &[&str]) -> Result<(), Refused> {
    if let Some(origin) = text(headers, ORIGIN)
        && !schemes.iter().filter_map(|scheme| origin.strip_prefix(scheme)).any(|own| own.eq_ignore_ascii_case(host))
    {
        return Err((StatusCode::FORBIDDEN, "from another origin"));
    }
    // `none`: typed by the user.
    if text(headers, SITE).is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err((StatusCode::FORBIDDEN, "from another site"));
    }
    Ok(())
}

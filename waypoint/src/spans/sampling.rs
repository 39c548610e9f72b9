//! Is a request traced about which no caller has decided? By Istio's and Envoy's rules: a mark in the request's id, a header that
//! asks for it, else chance, by the id itself, so that all proxies that look at it decide alike. Pure.

/// Length of a UUID as text.
const UUID_LENGTH: usize = 36;
/// The place of the mark in it: where its version stands.
const MARK: usize = 14;
/// Chance is counted in parts of this many (hundredths of a per cent).
pub const WHOLE: u32 = 10_000;

/// Who has decided that a request is traced, as Envoy marks it in the request's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Chance.
    Sampled,
    /// `x-envoy-force-trace`.
    Server,
    /// `x-client-trace-id`.
    Client,
}

impl Reason {
    /// The sign at its place in the id.
    fn mark(self) -> u8 {
        match self {
            Reason::Sampled => b'9',
            Reason::Server => b'a',
            Reason::Client => b'b',
        }
    }
}

/// What is decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is not traced.
    No,
    /// A proxy before us has marked it.
    Marked,
    /// It is, from here on.
    Yes(Reason),
}

/// What decides.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The request's id.
    pub id: &'a [u8],
    /// The mark in it counts.
    pub reads_mark: bool,
    /// It has an `x-client-trace-id`.
    pub client: bool,
    /// It has an `x-envoy-force-trace` that counts.
    pub force: bool,
    /// So many of [`WHOLE`] are traced by chance.
    pub rate: u32,
    /// Decides where the id is not one that can: below [`WHOLE`].
    pub chance: u32,
}

/// Decides.
pub fn decide(asked: Asked<'_>) -> Decision {
    if asked.reads_mark && matches!(mark(asked.id), Some(b'9' | b'a' | b'b')) {
        Decision::Marked
    } else if asked.client {
        Decision::Yes(Reason::Client)
    } else if asked.force {
        Decision::Yes(Reason::Server)
    } else if by_id(asked.id).unwrap_or(asked.chance) < asked.rate {
        Decision::Yes(Reason::Sampled)
    } else {
        Decision::No
    }
}

/// The same id with a reason's mark. None: it is no UUID, and stays as it is.
pub fn marked(id: &[u8], reason: Reason) -> Option<[u8; UUID_LENGTH]> {
    let mut out: [u8; UUID_LENGTH] = id.try_into().ok()?;
    out[MARK] = reason.mark();
    Some(out)
}

fn mark(id: &[u8]) -> Option<u8> {
    id.get(MARK).copied().filter(|_| id.len() == UUID_LENGTH)
}

/// Chance, as the first eight digits of an id have it.
fn by_id(id: &[u8]) -> Option<u32> {
    mark(id)?;
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    Some(u32::from_str_radix(digits, 16).ok()? % WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0x0000_03e7 is 999.
    const ID: &[u8] = b"000003e7-5b6f-4d0f-8f5b-5cd6c1f3a7f4";
    const ASKED: Asked<'_> = Asked { id: ID, reads_mark: true, client: false, force: false, rate: 0, chance: 0 };

    #[test]
    fn proxies_decide_alike_by_the_id() {
        assert_eq!(decide(Asked { rate: 999, ..ASKED }), Decision::No);
        assert_eq!(decide(Asked { rate: 1000, ..ASKED }), Decision::Yes(Reason::Sampled));
        assert_eq!(decide(Asked { id: b"mine", rate: 1, ..ASKED }), Decision::Yes(Reason::Sampled), "by chance");
        assert_eq!(decide(Asked { id: b"mine", rate: 1, chance: 1, ..ASKED }), Decision::No);
        assert_eq!(decide(Asked { id: b"", rate: WHOLE, chance: WHOLE - 1, ..ASKED }), Decision::Yes(Reason::Sampled));
    }

    #[test]
    fn headers_and_marks_force_it() {
        assert_eq!(decide(Asked { force: true, ..ASKED }), Decision::Yes(Reason::Server));
        assert_eq!(decide(Asked { force: true, client: true, ..ASKED }), Decision::Yes(Reason::Client));
        for reason in [Reason::Sampled, Reason::Server, Reason::Client] {
            let id = marked(ID, reason).unwrap_or([0; UUID_LENGTH]);
            assert_eq!(decide(Asked { id: &id, ..ASKED }), Decision::Marked);
            assert_eq!(decide(Asked { id: &id, reads_mark: false, ..ASKED }), Decision::No);
            assert_eq!((&id[..MARK], &id[MARK + 1..]), (&ID[..MARK], &ID[MARK + 1..]));
        }
        assert_eq!(marked(b"mine", Reason::Client), None);
    }
}

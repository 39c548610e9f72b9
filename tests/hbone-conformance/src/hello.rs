//! What a TLS ClientHello says (RFC 8446 §4.1.2), read from the first bytes of a connection.

/// The parts that the specification speaks of.
#[derive(Debug, Default, PartialEq)]
pub struct Hello {
    /// Versions offered.
    pub versions: Vec<u16>,
    /// Protocols offered.
    pub alpn: Vec<String>,
    /// Is there a server name?
    pub sni: bool,
    /// Is early data announced?
    pub early_data: bool,
    /// Groups for the key exchange.
    pub groups: Vec<u16>,
    /// Cipher suites.
    pub suites: Vec<u16>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (a, b) = self.0.split_at_checked(n)?;
        self.0 = b;
        Some(a)
    }
    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }
    /// A vector whose length stands before it in so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<Self> {
        let n = self.number(bytes)?;
        self.take(n).map(Reader)
    }
    fn words(mut self) -> Vec<u16> {
        std::iter::from_fn(|| self.number(2)).map(|n| n as u16).collect()
    }
}

/// Reads it. None: not all there yet, or no ClientHello.
pub fn parse(bytes: &[u8]) -> Option<Hello> {
    let mut r = Reader(bytes);
    if r.number(1)? != 22 {
        return None;
    }
    r.take(2)?;
    let mut r = r.vector(2)?;
    if r.number(1)? != 1 {
        return None;
    }
    let mut r = r.vector(3)?;
    r.take(2 + 32)?;
    r.vector(1)?;
    let mut h = Hello { suites: r.vector(2)?.words(), ..Hello::default() };
    r.vector(1)?;
    let mut all = r.vector(2)?;
    while !all.0.is_empty() {
        let (kind, mut e) = (all.number(2)?, all.vector(2)?);
        match kind {
            0 => h.sni = true,
            10 => h.groups = e.vector(2)?.words(),
            16 => {
                let mut l = e.vector(2)?;
                while !l.0.is_empty() {
                    h.alpn.push(String::from_utf8_lossy(l.vector(1)?.0).into());
                }
            }
            42 => h.early_data = true,
            43 => h.versions = e.vector(1)?.words(),
            _ => {}
        }
    }
    Some(h)
}

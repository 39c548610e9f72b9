//! Resources as they were told, for the admin page alone: compressed, so that a gateway with thousands of routes does not have
//! them in memory a second time.

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

/// A resource's bytes, compressed.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<[u8]>);

impl Kept {
    /// Takes a copy.
    pub fn new(bytes: &[u8]) -> Self {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        // A vector takes all that is written.
        let done = encoder.write_all(bytes).and_then(|()| encoder.finish());
        Self(done.unwrap_or_default().into())
    }

    /// The bytes again.
    ///
    /// # Errors
    /// None of what [`Kept::new`] has made.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        ZlibDecoder::new(&*self.0).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn what_is_kept_is_small_and_comes_back() {
        let routes: Vec<u8> =
            (0..5000u32).flat_map(|n| format!("/shop/products/{n} web.shop 80;").into_bytes()).collect();
        let kept = Kept::new(&routes);
        assert!(kept.0.len() < routes.len() / 3, "{} of {}", kept.0.len(), routes.len());
        assert_eq!(kept.bytes().unwrap(), routes);
        assert_eq!(Kept::new(b"").bytes().unwrap(), b"");
    }
}

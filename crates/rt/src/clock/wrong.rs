//! A clock that is wrong (feature `testing`): the time of day differs from the system's by what the file that `KARST_WORLD_CLOCK`
//! names says at that moment, in eight bytes, nanoseconds. Without that variable it is right. Whoever has asked for the time has
//! that file open: it can be seen whose clock can be set (`tests/world/src/world/clocks.rs`).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

/// By how much it is wrong; None: by nothing.
static SHIFT: OnceLock<Option<File>> = OnceLock::new();

/// A time of the system's, as this process is to see it.
pub(super) fn shifted(now: SystemTime) -> SystemTime {
    let shift = SHIFT.get_or_init(|| File::open(std::env::var_os("KARST_WORLD_CLOCK")?).ok());
    shift.as_ref().map_or(now, |file| by(now, read(file)))
}

/// What a file says; nothing, if it is shorter.
fn read(file: &File) -> i64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).map_or(0, |()| i64::from_ne_bytes(bytes))
}

fn by(now: SystemTime, nanoseconds: i64) -> SystemTime {
    let shift = Duration::from_nanos(nanoseconds.unsigned_abs());
    let moved = if nanoseconds < 0 { now.checked_sub(shift) } else { now.checked_add(shift) };
    moved.unwrap_or(now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_file_says_by_how_much_a_clock_is_wrong() {
        let path = std::env::temp_dir().join(format!("karst-clock-{}", std::process::id()));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (bytes, seconds) in [
            (vec![], 1_800_000_000.0),
            (3_000_000_000i64.to_ne_bytes().to_vec(), 1_800_000_003.0),
            ((-500_000_000i64).to_ne_bytes().to_vec(), 1_799_999_999.5),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let seen = by(now, read(&File::open(&path).unwrap()));
            assert_eq!(seen, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds), "{bytes:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}

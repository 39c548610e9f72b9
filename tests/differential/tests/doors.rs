//! The doors of the fuzz targets (`tests/fuzz`), by chance: each target's seeds, and thousands of inputs made of them. Without
//! guidance by coverage, which `cargo xtask fuzz` has and which needs a build of its own; it is here to notice a fault in each
//! run of the tests, not to look for hours. A panic, or what a door asserts, fails; so does an input that has no end.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{fs, panic, path::Path};

type Door = fn(&[u8]);

/// As `tests/fuzz/src/bin` has them.
const DOORS: [(&str, Door); 13] = [
    ("authorization", karst_waypoint::fuzz::authorization),
    ("connect", karst_ztunnel::fuzz::connect),
    ("convert", convert),
    ("dns", karst_ztunnel::fuzz::dns),
    ("head", karst_waypoint::fuzz::head),
    ("manifest", manifest),
    ("path", karst_waypoint::fuzz::path),
    ("proxy", karst_waypoint::fuzz::proxy),
    ("route", karst_waypoint::fuzz::route),
    ("san", san),
    ("signals", karst_ztunnel::fuzz::signals),
    ("xds", karst_ztunnel::fuzz::xds),
    ("zds", karst_ztunnel::fuzz::zds),
];
/// Inputs made for each door.
const INPUTS: usize = 4_000;
/// Of a made input, in bytes.
const LONGEST: usize = 4_096;

fn convert(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (kind, bytes) in karst_controller::fuzz::convert(text).into_iter().flatten() {
        karst_waypoint::fuzz::takes(kind, &bytes);
    }
}

fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(problems) = karst_manifest::parse::file("f.yaml".as_ref(), text) {
        assert!(!problems.is_empty());
    }
}

fn san(data: &[u8]) {
    let Ok(id) = karst_hbone::tls::identity_of(&rustls_pki_types::CertificateDer::from(data)) else { return };
    assert_eq!(id.to_string().parse::<karst_hbone::Identity>().ok().as_ref(), Some(&id));
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One of the seeds with some damage: bytes changed, cut out, doubled, exchanged for a part of another, or for what parsers dislike.
fn damaged(r: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    const DISLIKED: [&[u8]; 10] = [
        b"\0",
        b"\r\n",
        b"\xff\xff\xff\xff",
        b"%2f..",
        b"%",
        b"{",
        b"\"",
        b": ",
        b"\xf0\x9f\x90",
        b"99999999999999999999",
    ];
    let mut input = seeds.choose(r).cloned().unwrap_or_default();
    for _ in 0..r.random_range(1..6) {
        let from = r.random_range(0..=input.len());
        let to = r.random_range(from..=input.len().min(from + 64));
        match r.random_range(0..6) {
            0 if from < input.len() => input[from] ^= 1 << r.random_range(0..8),
            1 => drop(input.drain(from..to)),
            2 => {
                let part = input[from..to].to_vec();
                input.splice(to..to, part);
            }
            3 => {
                let other = seeds.choose(r).cloned().unwrap_or_default();
                let at = r.random_range(0..=other.len());
                input.splice(from..to, other[at..other.len().min(at + 64)].iter().copied());
            }
            4 => input.truncate(from),
            _ => drop(input.splice(from..to, DISLIKED.choose(r).copied().unwrap_or_default().iter().copied())),
        }
    }
    input.truncate(LONGEST);
    input
}

#[test]
fn no_door_falls() {
    let mut tried = 0;
    for (n, (name, door)) in DOORS.into_iter().enumerate() {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let r = &mut StdRng::seed_from_u64(n as u64);
        let made: Vec<Vec<u8>> = (0..INPUTS).map(|_| damaged(r, &seeds)).collect();
        for input in seeds.iter().chain(&made) {
            let done = panic::catch_unwind(|| door(input));
            assert!(done.is_ok(), "{name}: {input:?} ({:?})", String::from_utf8_lossy(input));
            tried += 1;
        }
    }
    println!("{tried} inputs at {} doors", DOORS.len());
}

/// Whoever adds a fuzz target adds its door here.
#[test]
fn all_fuzz_targets_are_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/src/bin");
    let mut there: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().into())
        .collect();
    there.sort();
    assert_eq!(there, DOORS.map(|(name, _)| name));
}

use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

// As Linux 6.18 has written them to a privileged asker (x86_64).
/// A listener at 10.0.0.5:8080, on `lo` only, with the mark 7.
const LISTENER_4: &str = "7c0000001400020001000000c4100000020a00001f9000000a00000500000000000000000000000000000000000000000000\
    00000000000001000000e711000000000000000000000000000004000000000000009fdf7d01050008000000000008000f00070000000c001500010000\
    00000000000600160052000000";
/// A listener at [::]:8081; among its attributes is one of five bytes, and three of padding.
const LISTENER_6: &str = "840000001400020001000000c41000000a0a00001f9100000000000000000000000000000000000000000000000000000000\
    00000000000000000000e81100000000000000000000000000000400000000000000a0df7d01050008000000000005000b000000000008000f00000000\
    000c00150001000000000000000600160012000000";
/// A connection from 10.0.0.5:40000 to 10.0.0.5:8080, marked as captured.
const CONNECTION_4: &str = "7c0000001400020001000000c4100000020100009c401f900a0000050000000000000000000000000a00000500000000000000\
    000000000000000000ea1100000000000000000000000000000000000000000000a3df7d01050008000000000008000f00110100000c00150001000000\
    000000000600160052000000";
/// Two connections in one datagram, of dual-stack sockets: from [fd00::5]:40002 to [fd00::5]:8081, and from 10.0.0.5:40001 to
/// 10.0.0.5:8081.
const CONNECTIONS_6: &str = "7c0000001400020001000000c41000000a0100009c421f91fd000000000000000000000000000005fd00000000000000000000\
    000000000500000000eb1100000000000000000000000000000000000000000000a5df7d01050008000000000008000f00000000000c00150001000000\
    000000000600160012000000\
    7c0000001400020001000000c41000000a0100009c411f9100000000000000000000ffff0a00000500000000000000000000ffff0a00000500000000ec\
    1100000000000000000000000000000000000000000000a4df7d01050008000000000008000f00000000000c0015000100000000000000060016001200\
    0000";
/// The end of a list.
const DONE: &str = "140000000300020001000000c410000000000000";
/// SOCK_DESTROY of a connection that there is not: ENOENT, and the request.
const GONE: &str = "5c0000000200000001000000c4100000feffffff48000000150005000100000000000000020600003e0b0000000100020101010101\
    010101010101010101010101010101010101010101010101010101010101010101010101010101";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
fn at(s: &str) -> SocketAddr {
    s.parse().unwrap()
}
fn all_of(datagram: &[u8]) -> (Result<Progress, Fault>, Vec<TcpSocket>) {
    let mut all = vec![];
    (read(datagram, &mut |s| all.push(s)), all)
}
/// A message of the kernel's, its length made right.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut m = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    m.extend([kind, flags].map(u16::to_ne_bytes).concat());
    m.resize(HEADER, 0);
    m.extend(body);
    m
}
/// A listener without attributes, and then these.
fn with_attributes(attributes: &[u8]) -> Vec<u8> {
    let whole = bytes(LISTENER_4);
    message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, &[&whole[HEADER..HEADER + MESSAGE], attributes].concat())
}

#[test]
fn listeners_are_read() {
    let (end, all) = all_of(&[bytes(LISTENER_4), bytes(LISTENER_6)].concat());
    assert_eq!(end, Ok(Progress::More));
    let seen: Vec<_> = all.iter().map(|s| (s.local, s.remote, s.device, s.cookie, s.mark, s.stored)).collect();
    assert_eq!(
        seen,
        [
            (at("10.0.0.5:8080"), at("0.0.0.0:0"), 1, 0x11e7, 7, false),
            (at("[::]:8081"), at("[::]:0"), 0, 0x11e8, 0, false),
        ]
    );
}

#[test]
fn connections_are_read_and_dual_stack_sockets_are_known_by_their_ipv4_addresses() {
    let (end, all) = all_of(&[bytes(CONNECTION_4), bytes(CONNECTIONS_6)].concat());
    assert_eq!(end, Ok(Progress::More));
    let seen: Vec<_> = all.iter().map(|s| (s.local, s.remote, s.device, s.cookie, s.mark, s.family)).collect();
    let (v4, v6) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
    assert_eq!(
        seen,
        [
            (at("10.0.0.5:40000"), at("10.0.0.5:8080"), 0, 0x11ea, 0x111, v4),
            (at("[fd00::5]:40002"), at("[fd00::5]:8081"), 0, 0x11eb, 0, v6),
            (at("10.0.0.5:40001"), at("10.0.0.5:8081"), 0, 0x11ec, 0, v6),
        ]
    );
    // What SOCK_DESTROY is given is what the kernel has said.
    assert_eq!(all[0].id[..], bytes(CONNECTION_4)[HEADER + 4..HEADER + 4 + ID]);
}

#[test]
fn both_words_of_a_cookie_count() {
    let mut whole = bytes(LISTENER_4);
    whole[HEADER + 48..HEADER + 52].copy_from_slice(&1u32.to_ne_bytes());
    assert_eq!(all_of(&whole).1[0].cookie, 0x1_0000_11e7);
}

#[test]
fn a_list_goes_on_until_its_end() {
    assert_eq!(all_of(&bytes(DONE)).0, Ok(Progress::Done));
    let (end, all) = all_of(&[bytes(LISTENER_4), bytes(DONE), bytes(LISTENER_6)].concat());
    assert_eq!((end, all.len()), (Ok(Progress::Done), 1), "nothing comes after the end");
    // NLMSG_NOOP and kinds that are not known are passed over.
    let (end, all) =
        all_of(&[message(1, 0, &[]), message(99, NLM_F_MULTI, &[1]), vec![0; 3], bytes(LISTENER_4)].concat());
    assert_eq!((end, all.len()), (Ok(Progress::More), 1));
    // Some kernels end a list without a number.
    assert_eq!(all_of(&message(NLMSG_DONE, NLM_F_MULTI, &[])).0, Ok(Progress::Done));
}

#[test]
fn an_answer_that_is_no_list_is_one_message() {
    let whole = bytes(LISTENER_4);
    let (end, all) = all_of(&message(SOCK_DIAG_BY_FAMILY, 0, &whole[HEADER..]));
    assert_eq!((end, all.len()), (Ok(Progress::Done), 1));
}

#[test]
fn errors_of_the_kernel_are_told_also_at_the_end_of_a_list() {
    assert_eq!(all_of(&bytes(GONE)).0, Err(Fault::Kernel(libc::ENOENT)));
    let code = |kind, n: i32| all_of(&message(kind, 0, &n.to_ne_bytes())).0;
    assert_eq!(code(NLMSG_ERROR, 0), Ok(Progress::Done), "an acknowledgement");
    assert_eq!(code(NLMSG_ERROR, -libc::EPERM), Err(Fault::Kernel(libc::EPERM)));
    assert_eq!(code(NLMSG_DONE, -libc::ENOMEM), Err(Fault::Kernel(libc::ENOMEM)));
    assert_eq!(code(NLMSG_ERROR, i32::MIN), Err(Fault::Kernel(i32::MAX)));
    assert_eq!(all_of(&message(NLMSG_ERROR, 0, &[0, 0])).0, Err(Fault::CutOff));
    assert_eq!(io::Error::from(Fault::Kernel(libc::EPERM)).raw_os_error(), Some(libc::EPERM));
    assert_eq!(io::Error::from(Fault::CutOff).kind(), io::ErrorKind::InvalidData);
}

#[test]
fn what_is_cut_off_is_refused() {
    for whole in [LISTENER_4, LISTENER_6, CONNECTION_4, GONE, DONE].map(bytes) {
        for n in 0..whole.len() {
            assert_eq!(all_of(&whole[..n]).0, Err(Fault::CutOff), "{n} bytes");
        }
    }
    let whole = bytes(LISTENER_4);
    // Cut off with a length that says so, too: in the header of the socket.
    for n in 0..MESSAGE {
        let short = message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, &whole[HEADER..HEADER + n]);
        assert_eq!(all_of(&short).0, Err(Fault::CutOff), "{n} bytes");
    }
    // Lengths that are less than a header's would go on for ever.
    for length in 0..HEADER as u32 {
        let mut endless = whole.clone();
        endless[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(all_of(&endless).0, Err(Fault::CutOff), "length {length}");
    }
    let mut huge = whole;
    huge[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(all_of(&huge).0, Err(Fault::CutOff));
}

#[test]
fn attributes_are_read_within_their_lengths() {
    let attribute =
        |length: u16, kind: u16, value: &[u8]| [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    let mark = attribute(8, INET_DIAG_MARK, &[7, 0, 0, 0]);
    let one = |attributes: &[u8]| {
        let (end, all) = all_of(&with_attributes(attributes));
        end.map(|_| (all[0].mark, all[0].stored))
    };
    assert_eq!(one(&[]), Ok((0, false)));
    assert_eq!(one(&mark), Ok((7, false)));
    // A socket in the map: nested, with nothing that we read in it.
    let stored = attribute(8, INET_DIAG_SK_BPF_STORAGES | 0x8000, &[4, 0, 1, 0x80]);
    assert_eq!(one(&[stored, mark.clone()].concat()), Ok((7, true)));
    // A mark of less than four bytes: what comes behind it is another attribute.
    for length in 4..8 {
        assert_eq!(one(&attribute(length, INET_DIAG_MARK, &[7, 0, 0, 0])), Err(Fault::CutOff), "length {length}");
    }
    // Lengths that are less than a header's, or more than there is.
    for length in [0, 1, 2, 3, 9, u16::MAX] {
        let odd = attribute(length, 99, &[0; 4]);
        assert_eq!(one(&odd), Err(Fault::CutOff), "length {length}");
    }
    // Less than a header is padding.
    assert_eq!(one(&[mark, vec![1, 2, 3]].concat()), Ok((7, false)));
}

#[test]
fn families_that_were_not_asked_for_are_refused() {
    let mut other = bytes(LISTENER_4);
    other[HEADER] = libc::AF_UNIX as u8;
    assert_eq!(all_of(&other).0, Err(Fault::Family(libc::AF_UNIX as u8)));
}

#[test]
fn no_bytes_make_it_panic() {
    let mut random = StdRng::seed_from_u64(14);
    let kinds = [0, NLMSG_ERROR, NLMSG_DONE, SOCK_DIAG_BY_FAMILY];
    let real = [bytes(LISTENER_4), bytes(LISTENER_6), bytes(CONNECTIONS_6), bytes(GONE), bytes(DONE)].concat();
    let (mut read_whole, mut refused) = (0, 0);
    for n in 0..40_000 {
        let mut b = if n % 2 == 0 {
            // A header that is right now and then, so that what is behind it is read.
            let body: Vec<u8> = (0..random.random_range(0..160)).map(|_| random.random()).collect();
            message(kinds[random.random_range(0..kinds.len())], random.random(), &body)
        } else {
            let from = random.random_range(0..real.len());
            real[if random.random() { 0 } else { from }..].to_vec()
        };
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..b.len());
            b[at] = random.random();
        }
        b.truncate(random.random_range(0..=b.len() * 2));
        match all_of(&b).0 {
            Ok(_) => read_whole += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read_whole > 1000 && refused > 1000, "{read_whole} {refused}");
}

#[test]
fn requests_have_the_kernels_layout() {
    let dump = |map| request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 2, States::Open, &[0; ID], map);
    let plain = dump(None);
    assert_eq!((plain.len(), u32_at(&plain, 0)), (HEADER + 8 + ID, Some(72)));
    let with_map = dump(Some(9));
    assert_eq!(u32_at(&with_map, 0), Some(84));
    assert_eq!((u16_at(&with_map, 72), u16_at(&with_map, 74)), (Some(12), Some(2)));
    assert_eq!((u16_at(&with_map, 76), u16_at(&with_map, 78), u32_at(&with_map, 80)), (Some(8), Some(1), Some(9)));
    // The kernel gives back what it was asked, here to end a connection.
    let asked = bytes(GONE)[HEADER + 4..].to_vec();
    let id = array_at(&asked, HEADER + 8).unwrap();
    let ours = request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, 2, States::Open, &id, None);
    assert_eq!(ours, asked);
}

/// The kernel itself: our own sockets are in its lists. (Listing needs no privilege, ending does.)
#[test]
fn the_kernel_lists_what_is_open() {
    let diag = SockDiag::open().unwrap();
    let find = |states, of: SocketAddr| {
        let mut found = None;
        diag.each(states, None, |s| {
            if s.local == of {
                found = Some(s);
            }
        })
        .unwrap();
        found
    };
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let Ok(l) = TcpListener::bind((ip, 0)) else { continue };
        let c = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (ours, theirs) = (c.local_addr().unwrap(), c.peer_addr().unwrap());
        let seen = find(States::Open, ours).expect("our end is listed");
        assert_eq!(seen.remote, theirs);
        assert_eq!(find(States::Open, theirs).expect("its other end is listed, too").remote, ours);
        assert_eq!(find(States::Open, ours).unwrap().cookie, seen.cookie);
        assert_eq!(find(States::Listening, theirs).expect("the listener is listed").remote.port(), 0);
        assert_eq!(find(States::Listening, ours), None);
        drop((c, l));
    }
}

/// A process with CAP_NET_ADMIN in the pod may write to any netlink socket there (another is refused before that).
#[test]
fn nobody_but_the_kernel_can_answer() {
    let diag = SockDiag::open().unwrap();
    let (ours, kernel) = (diag.0.local_addr().unwrap(), netlink::address(0).unwrap());
    assert_ne!(ours, kernel, "it has an address to write to");
    let other =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG))).unwrap();
    let e = other.send_to(&bytes(DONE), &ours).unwrap_err().raw_os_error();
    assert!(matches!(e, Some(libc::ECONNREFUSED | libc::EPERM)), "{e:?}");
}

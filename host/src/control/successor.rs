//! Whether another process listens on our port too. Of two, the one that ends leaves the admin port to the other: whoever
//! asks there shall hear the one that stays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::sleep;

use crate::edge::Attended;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What the kernel writes for a socket that listens.
const LISTENS: &str = "0A";

/// Waits until this process is about to end and another one listens at the door's address.
pub async fn listens(door: &Attended, ending: &AtomicBool) {
    loop {
        sleep(LOOK_EVERY).await;
        if ending.load(Relaxed) && door.address().is_ok_and(|address| listeners(address) > 1) {
            return;
        }
    }
}

/// Says so where another process serves the same port: on purpose for a moment, or by mistake.
pub fn warn_of_others(address: SocketAddr) {
    if listeners(address) > 1 {
        tracing::warn!("another process serves {address} too, until it is told to end");
    }
}

/// How many sockets listen at this address; none where the kernel does not say.
fn listeners(address: SocketAddr) -> usize {
    let path = if address.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let table = std::fs::read_to_string(path).unwrap_or_default();
    table.lines().filter_map(listening).filter(|other| *other == address).count()
}

/// The address of a line `sl local_address rem_address st …`, where that socket listens.
fn listening(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (ip, port) = local.split_once(':').filter(|_| state == LISTENS)?;
    // Words of 32 bits, each in the order of this machine.
    let word = |at: usize| u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        _ => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::Door;

    #[test]
    fn every_process_that_listens_is_counted_and_none_that_only_holds_the_port() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let first = Door::bind(any.parse().unwrap()).unwrap();
            let address = first.address().unwrap();
            let second = Door::bind(address).unwrap();
            first.open().unwrap();
            assert_eq!(listeners(address), 1, "{address}");
            second.open().unwrap();
            assert_eq!(listeners(address), 2, "{address}");
            drop(first);
            assert_eq!(listeners(address), 1, "{address}");
        }
    }
}

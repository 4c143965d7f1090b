//! The error codes of nats-server 2.15 and before: which pass by themselves, and which refuse for good. docs/protocol.md has the
//! table of all of them; a test holds the two together. No I/O.

/// The newest code that this program knows.
const KNOWN_MAX: u64 = 10228;

/// Codes of a server or a cluster that has no leader, no quorum, is starting, or is busy: it passes by itself, within seconds.
const WITHOUT_LEADER: [u64; 19] = [
    10004, 10005, 10007, 10008, 10009, 10041, 10044, 10075, 10118, 10119, 10163, 10164, 10167, 10194, 10195, 10202,
    10210, 10211, 10228,
];
/// Codes of all else that passes: a disk, memory or a stream that is full, or something that is made again, or under way.
const PASSING: [u64; 39] = [
    10002, 10012, 10014, 10023, 10026, 10027, 10028, 10029, 10035, 10037, 10039, 10042, 10045, 10047, 10048, 10049,
    10050, 10051, 10052, 10057, 10059, 10062, 10063, 10064, 10066, 10067, 10069, 10072, 10076, 10077, 10104, 10105,
    10110, 10124, 10129, 10149, 10158, 10224, 10226,
];

/// Whether the same request may succeed later, as it is. `status` decides about a code that is newer than this program: 5xx, a
/// conflict and too many requests pass.
#[must_use]
pub fn is_passing(error_code: u64, status: u64) -> bool {
    match error_code {
        ..=KNOWN_MAX => PASSING.contains(&error_code) || is_without_leader(error_code),
        _ => matches!(status, 409 | 429 | 500..=599),
    }
}

/// Whether the server or its cluster has no leader, no quorum, is starting, or is busy.
#[must_use]
pub fn is_without_leader(error_code: u64) -> bool {
    WITHOUT_LEADER.contains(&error_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOL: &str = include_str!("../../../../docs/protocol.md");

    /// The codes that a cell of the table names: `10002`, or `10015 to 10022`.
    fn codes(cell: &str) -> Vec<u64> {
        let range = |part: &str| {
            let (from, to) = part.split_once(" to ").unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is a code"));
            number(from)..=number(to)
        };
        cell.split(',').flat_map(range).collect()
    }

    #[test]
    fn the_table_of_the_protocol_has_each_code_once_and_says_the_same() {
        let table = PROTOCOL.split("| error codes of the server |").nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let mut seen = Vec::new();
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let passing = match cells[3] {
                "passing" => true,
                "permanent" | "an answer" => false,
                other => panic!("{other:?} is passing, permanent or an answer"),
            };
            for code in codes(cells[1]) {
                assert_eq!(is_passing(code, 400), passing, "{code}");
                seen.push(code);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (10002..=KNOWN_MAX).collect::<Vec<u64>>());
    }

    #[test]
    fn the_status_decides_about_a_code_that_is_not_known() {
        assert!(is_passing(19_999, 503) && is_passing(19_999, 429) && !is_passing(19_999, 400));
    }
}

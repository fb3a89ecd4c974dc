//! The pages of the kernel's ring buffer (Documentation/trace/ring-buffer-design.rst,
//! `header_page` and `header_event` of tracefs).

/// A record of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Nanoseconds since the start of the machine.
    pub(super) time: u64,
    pub(super) cpu: u32,
    /// The event's fields, the common ones first.
    pub(super) fields: Vec<u8>,
}

/// The time, and the size of what follows it.
const HEADER: usize = 16;
/// The part of the size that is a size: the rest are flags.
const SIZE: u64 = 0xf_ffff;

/// Reads the records of a page.
pub(super) fn records(page: &[u8], cpu: u32, into: &mut Vec<Record>) {
    let word =
        |at: usize| page.get(at..at + 4).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
    let long =
        |at: usize| page.get(at..at + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    let (Some(mut time), Some(size)) = (long(0), long(8)) else { return };
    let end = (HEADER + usize::try_from(size & SIZE).unwrap_or(0)).min(page.len());
    let mut at = HEADER;
    while at + 4 <= end {
        let Some(header) = word(at) else { return };
        let (kind, delta) = (header & 0x1f, u64::from(header >> 5));
        at += 4;
        match kind {
            // Padding: of the rest of the page, or of a record that was taken back.
            29 => match word(at) {
                Some(length) if delta != 0 => {
                    time += delta;
                    at += length as usize;
                }
                _ => return,
            },
            // A longer time, in two parts.
            30 => {
                let Some(high) = word(at) else { return };
                time += u64::from(high) << 27 | delta;
                at += 4;
            }
            // The time itself: the kernel keeps the bits that do not fit from before.
            31 => {
                let Some(high) = word(at) else { return };
                let kept = time & 0xf800_0000_0000_0000;
                time = u64::from(high) << 27 | delta | kept;
                at += 4;
            }
            kind => {
                time += delta;
                let length = match kind {
                    // The size is in a word of its own, which it counts.
                    0 => {
                        let Some(length) = word(at) else { return };
                        at += 4;
                        (length as usize).saturating_sub(4)
                    }
                    words => words as usize * 4,
                };
                let Some(fields) = page.get(at..at + length) else { return };
                into.push(Record { time, cpu, fields: fields.to_vec() });
                at += length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(words: &[u32]) -> Vec<u8> {
        let mut page = 1000u64.to_le_bytes().to_vec();
        page.extend(((words.len() as u64 * 4) | (1 << 31)).to_le_bytes());
        page.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        page
    }

    fn read(words: &[u32]) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        records(&page(words), 3, &mut found);
        found.iter().map(|record| (record.time, record.fields.len())).collect()
    }

    #[test]
    fn records_have_their_times() {
        // Two words; after a longer time one with its size apart; padding.
        let words = [5 << 5 | 2, 7, 8, 1 << 5 | 30, 1, 2 << 5, 8, 9, 29];
        assert_eq!(read(&words), [(1005, 8), (1005 + (1 << 27) + 1 + 2, 4)]);
        // One that was taken back, and the time itself.
        let words = [4 << 5 | 29, 4, 9 << 5 | 31, 2, 1 << 5 | 1, 0];
        assert_eq!(read(&words), [((2 << 27 | 9) + 1, 4)]);
    }

    #[test]
    fn torn_pages_end_where_they_end() {
        for cut in 0..40 {
            let mut found = Vec::new();
            let whole = page(&[5 << 5 | 2, 7, 8, 0, 999, 1]);
            records(&whole[..cut.min(whole.len())], 0, &mut found);
            assert!(found.len() <= 1);
        }
    }
}

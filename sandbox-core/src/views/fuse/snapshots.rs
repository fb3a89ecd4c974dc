//! What was read at a file's start, for the reads that go on from there.
//!
//! A program that reads a file in parts must get the parts of one text. Files that are opened
//! are not counted anywhere: a snapshot is made when the first part is read, and only the
//! latest are kept. A read that goes on after its snapshot has gone gets the part of a new one.

use std::collections::VecDeque;

/// How many texts are kept.
const MAX: usize = 128;

/// How many bytes they may have together, unless one alone has more.
const MAX_BYTES: usize = 512 * 1024;

/// The texts by the handle that they are read by, the latest used at the end.
#[derive(Debug, Default)]
pub(super) struct Snapshots(VecDeque<Snapshot>);

#[derive(Debug)]
struct Snapshot {
    handle: u64,
    /// Empty once its end was read: most programs only ask once more, for where that is.
    text: Vec<u8>,
    length: u64,
}

impl Snapshots {
    /// Returns a part of the text that the handle's first read got. `None` if that is needed
    /// anew.
    pub(super) fn read(&mut self, handle: u64, offset: u64, size: u32) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|snapshot| snapshot.handle == handle)?;
        let mut snapshot = self.0.remove(at)?;
        let part = if offset >= snapshot.length {
            Some(Vec::new())
        } else {
            part(&snapshot.text, offset, size).map(<[u8]>::to_vec)
        };
        if part.is_some() {
            snapshot.finish(offset, size);
            self.0.push_back(snapshot);
        }
        part
    }

    /// Keeps a new text and returns a part of it.
    pub(super) fn start(&mut self, handle: u64, text: Vec<u8>, offset: u64, size: u32) -> Vec<u8> {
        self.release(handle);
        let length = text.len() as u64;
        let mut snapshot = Snapshot { handle, text, length };
        let whole = offset == 0 && u64::from(size) >= length;
        let part: Vec<u8> = if whole {
            std::mem::take(&mut snapshot.text)
        } else {
            part(&snapshot.text, offset, size).unwrap_or_default().to_vec()
        };
        snapshot.finish(offset, size);
        self.0.push_back(snapshot);
        self.make_room();
        part
    }

    /// Drops a handle's text.
    pub(super) fn release(&mut self, handle: u64) {
        self.0.retain(|snapshot| snapshot.handle != handle);
    }

    /// Returns how many bytes they have.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|snapshot| snapshot.text.len()).sum()
    }

    fn make_room(&mut self) {
        while self.0.len() > MAX || (self.0.len() > 1 && self.bytes() > MAX_BYTES) {
            self.0.pop_front();
        }
    }
}

impl Snapshot {
    /// Drops the text, if that read got its end.
    fn finish(&mut self, offset: u64, size: u32) {
        if offset.saturating_add(u64::from(size)) >= self.length {
            self.text = Vec::new();
        }
    }
}

/// Returns a part of a text. `None` if it begins behind the end.
fn part(text: &[u8], offset: u64, size: u32) -> Option<&[u8]> {
    let rest = text.get(usize::try_from(offset).ok()?..)?;
    let size = usize::try_from(size).ok()?;
    (!rest.is_empty()).then(|| &rest[..size.min(rest.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_one_text() {
        let mut snapshots = Snapshots::default();
        assert_eq!(snapshots.read(1, 4, 4), None);
        assert_eq!(snapshots.start(1, b"one two three".to_vec(), 0, 4), b"one ");
        assert_eq!(snapshots.start(2, b"another text".to_vec(), 0, 4), b"anot");
        assert_eq!(snapshots.read(1, 4, 4).unwrap(), b"two ");
        assert_eq!(snapshots.read(1, 8, 100).unwrap(), b"three");
        assert_eq!(snapshots.read(1, 13, 100).unwrap(), b"");
        assert_eq!(snapshots.read(1, u64::MAX, u32::MAX).unwrap(), b"");
        assert_eq!(snapshots.read(2, 4, 4).unwrap(), b"her ");
    }

    #[test]
    fn a_text_that_was_read_to_its_end_takes_no_memory() {
        let mut snapshots = Snapshots::default();
        assert_eq!(snapshots.start(1, b"text".to_vec(), 0, 4096), b"text");
        assert_eq!(snapshots.0[0].text.capacity(), 0);
        assert_eq!(snapshots.read(1, 4, 4096).unwrap(), b"");
        // And is made anew when the reader goes back.
        assert_eq!(snapshots.read(1, 2, 4096), None);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut snapshots = Snapshots::default();
        for handle in 0..10_000 {
            snapshots.start(handle, vec![1; 100 * 1024], 0, 1024);
            assert!(snapshots.bytes() <= MAX_BYTES && snapshots.0.len() <= MAX);
        }
        assert!(snapshots.read(9_999, 1024, 1).is_some() && snapshots.read(0, 1024, 1).is_none());
        // One that has more than all may have is kept while it is the latest.
        snapshots.start(1, vec![1; 2 * MAX_BYTES], 0, 1024);
        assert_eq!(snapshots.0.len(), 1);
        (0..10_000).for_each(|handle| drop(snapshots.start(handle, b"text".to_vec(), 0, 9)));
        assert_eq!(snapshots.0.len(), MAX);
    }
}

//! Writes a search for the number of a call.

use super::{IF_AT_LEAST, Step};

/// Returns a binary search for what belongs to the number that is loaded. Each end comes with
/// the first number from which it holds, the first of them with 0; `code` returns its
/// instructions, the last of which ends the program or jumps away. They are written once for all
/// that share them, as far as a comparison reaches: the time that the kernel takes to load a
/// program grows with its length.
pub fn search<E: Copy + PartialEq>(ends: &[(u32, E)], code: impl Fn(E) -> Vec<Step>) -> Vec<Step> {
    let mut backwards = Backwards { code_of: code, code: Vec::new(), shared: Vec::new() };
    backwards.search(ends);
    backwards.code.reverse();
    backwards.code
}

/// Code that is written from its end, so that where a jump leads is known before it. A place in
/// it is the number of instructions that come after.
struct Backwards<E, C> {
    code_of: C,
    code: Vec<Step>,
    /// The last place of each end.
    shared: Vec<(E, usize)>,
}

impl<E: Copy + PartialEq, C: Fn(E) -> Vec<Step>> Backwards<E, C> {
    /// Writes a search. Returns its first place.
    fn search(&mut self, ends: &[(u32, E)]) -> usize {
        if let [(_, end)] = ends {
            return self.end(*end);
        }
        let (low, high) = ends.split_at(ends.len() / 2);
        let from_here = self.search(high);
        let below = self.search(low);
        let from_here = self.in_reach(from_here);
        let below = self.in_reach(below);
        let distance = |place: usize| (self.code.len() - 1 - place) as u8;
        self.code.push(Step {
            code: IF_AT_LEAST,
            if_true: distance(from_here),
            if_false: distance(below),
            operand: high[0].0,
        });
        self.code.len() - 1
    }

    fn end(&mut self, end: E) -> usize {
        let known = self.shared.iter().find(|(shared, _)| *shared == end);
        if let Some((_, place)) = known.filter(|(_, place)| self.reaches(*place)) {
            return *place;
        }
        self.code.extend((self.code_of)(end).into_iter().rev());
        let place = self.code.len() - 1;
        self.shared.retain(|(shared, _)| *shared != end);
        self.shared.push((end, place));
        place
    }

    /// Returns a place from which this one is reached, and which a comparison reaches.
    fn in_reach(&mut self, place: usize) -> usize {
        if self.reaches(place) {
            return place;
        }
        self.code.push(Step::jump(self.code.len() - 1 - place));
        self.code.len() - 1
    }

    /// Whether a comparison reaches it even behind a jump: one leads 255 instructions far.
    fn reaches(&self, place: usize) -> bool {
        self.code.len() - place < 255
    }
}

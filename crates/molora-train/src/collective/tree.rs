//! A sum whose bits do not depend on who adds what.

/// The sum of `1 << level` consecutive leaves, of which the first is number `index << level`.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<T> {
    /// The binary logarithm of the number of leaves.
    pub level: u32,
    /// Its place among the nodes of its level.
    pub index: usize,
    /// The sum.
    pub value: T,
}

impl<T> Node<T> {
    fn is_left_of(&self, other: &Self) -> bool {
        self.level == other.level && self.index.is_multiple_of(2) && other.index == self.index + 1
    }
}

/// A sum of numbered leaves along one fixed binary tree.
///
/// Two neighbours of a level, of which the first has an even number, are added as soon as both are there. What is
/// left when all leaves are in (they are not a power of two) is added from the last node to the first. Floating
/// point sums depend on their order: this one is the same for leaves one by one and for the sums of subtrees that
/// others have made.
///
/// ```
/// use molora_train::collective::TreeSum;
///
/// let mut sum = TreeSum::default();
/// for leaf in 0..6 {
///     sum.push_leaf(leaf, 1 << leaf, |left, right| left + right);
/// }
/// assert_eq!(sum.total(|left, right| left + right), Some(63));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TreeSum<T> {
    nodes: Vec<Node<T>>,
}

impl<T> Default for TreeSum<T> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<T> TreeSum<T> {
    /// Adds the leaf of that number. Leaves come in ascending order, and need not begin with 0.
    pub fn push_leaf(&mut self, leaf: usize, value: T, add: impl Fn(T, T) -> T) {
        let (level, index) = (0, leaf);
        self.push(
            Node {
                level,
                index,
                value,
            },
            add,
        );
    }

    /// Adds a node whose leaves are behind all that are there.
    pub fn push(&mut self, mut node: Node<T>, add: impl Fn(T, T) -> T) {
        while let Some(left) = self.nodes.pop_if(|left| left.is_left_of(&node)) {
            node = Node {
                level: node.level + 1,
                index: node.index / 2,
                value: add(left.value, node.value),
            };
        }
        self.nodes.push(node);
    }

    /// What could not be added yet, in ascending order.
    pub fn into_nodes(self) -> Vec<Node<T>> {
        self.nodes
    }

    /// The sum of all leaves, when they are all in; `None` without any.
    pub fn total(self, add: impl Fn(T, T) -> T) -> Option<T> {
        let values = self.nodes.into_iter().map(|node| node.value).rev();
        values.reduce(|right, left| add(left, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::share;

    /// The order of additions in words.
    fn add(left: String, right: String) -> String {
        format!("({left}+{right})")
    }

    fn leaves(sum: &mut TreeSum<String>, leaves: std::ops::Range<usize>) {
        for leaf in leaves {
            sum.push_leaf(leaf, leaf.to_string(), add);
        }
    }

    #[test]
    fn sums_are_made_in_pairs() {
        for (count, expected) in [
            (1, "0"),
            (2, "(0+1)"),
            (3, "((0+1)+2)"),
            (5, "(((0+1)+(2+3))+4)"),
            (7, "(((0+1)+(2+3))+((4+5)+6))"),
        ] {
            let mut sum = TreeSum::default();
            leaves(&mut sum, 0..count);
            assert_eq!(sum.total(add).as_deref(), Some(expected));
        }
        assert_eq!(TreeSum::default().total(add), None);
    }

    #[test]
    fn the_order_is_the_same_for_any_number_of_ranks() {
        for count in 1..20 {
            let mut alone = TreeSum::default();
            leaves(&mut alone, 0..count);
            let expected = alone.total(add);
            for world_size in 1..=count {
                let mut all = TreeSum::default();
                for rank in 0..world_size {
                    let mut own = TreeSum::default();
                    leaves(&mut own, share(count, rank, world_size));
                    for node in own.into_nodes() {
                        all.push(node, add);
                    }
                }
                assert_eq!(
                    all.total(add),
                    expected,
                    "{world_size} ranks, {count} leaves"
                );
            }
        }
    }
}

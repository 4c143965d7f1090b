//! Items of a batch: their ids, and their bits in the bitmap of its row.

use millpond::outcome::{Items, id_of};

/// The id of an item; of a batch of one too, where [`id_of`] names the batch itself.
pub(super) fn item_id(root: &str, items: Items, item: u32) -> String {
    match id_of(root, Some(Items { of: items.of, from: item, len: 1 })) {
        id if id == root => format!("{root}/{item}"),
        id => id,
    }
}

/// Whether a bitmap has the bit of this item: then the item has a result.
pub(super) fn has_bit(bitmap: &[u8], item: u32) -> bool {
    bitmap.get(item as usize / 8).is_some_and(|byte| byte & (1 << (item % 8)) != 0)
}

/// The item that an id names, where it names one.
pub(super) fn item_of_id(id: &str) -> Option<u32> {
    id.rsplit('/').next()?.parse().ok()
}

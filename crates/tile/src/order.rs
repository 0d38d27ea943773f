//! In which order the cells of an image are visited.

use microtome_io::{Size, TileCoord};

/// The cells of a grid in Z-order (Morton's): the four of each square of 2 x 2 one after the other, and so the four squares of each square of
/// 4 x 4, and so on.
///
/// Whoever builds something of each square when its last cell has come has at most one square of each size in hand, whatever the size of the
/// grid. Each cell is visited once; what lies outside the grid costs nothing that grows with it. Memory: at most 4 x 64 places.
///
/// ```
/// use microtome_io::{Size, TileCoord};
///
/// let order: Vec<_> = microtome_tile::z_order(Size::new(3, 2)).map(|at| (at.column, at.row)).collect();
/// assert_eq!(order, [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]);
/// ```
pub fn z_order(cells: Size) -> impl Iterator<Item = TileCoord> + Send {
    let side = cells.width.max(cells.height).checked_next_power_of_two().unwrap_or(1 << 63);
    // Squares that are still to be visited, the next one last: column, row and side.
    let mut squares = vec![(0, 0, side)];
    std::iter::from_fn(move || {
        while let Some((column, row, side)) = squares.pop() {
            if column >= cells.width || row >= cells.height {
                continue;
            }
            if side == 1 {
                return Some(TileCoord { row, column });
            }
            let half = side / 2;
            squares.extend([
                (column + half, row + half, half),
                (column, row + half, half),
                (column + half, row, half),
                (column, row, half),
            ]);
        }
        None
    })
}

/// The cells of a grid row by row.
pub fn row_order(cells: Size) -> impl Iterator<Item = TileCoord> + Send {
    (0..cells.height).flat_map(move |row| (0..cells.width).map(move |column| TileCoord { row, column }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_is_visited_once_and_every_square_is_finished_before_the_next_begins() {
        for (width, height) in [(1, 1), (2, 2), (5, 3), (8, 8), (1, 100), (100, 1), (7, 19), (0, 5)] {
            let order: Vec<TileCoord> = z_order(Size::new(width, height)).collect();
            let cells: BTreeSet<TileCoord> = order.iter().copied().collect();
            assert_eq!((order.len(), cells.len() as u64), (cells.len(), width * height));
            assert!(cells.iter().eq(&row_order(Size::new(width, height)).collect::<Vec<_>>()));
            for side in [2, 4, 8] {
                let mut squares: Vec<_> = order.iter().map(|at| (at.row / side, at.column / side)).collect();
                squares.dedup();
                let distinct: BTreeSet<_> = squares.iter().collect();
                assert_eq!(squares.len(), distinct.len(), "a square of {side} was left and come back to");
            }
        }
    }

    #[test]
    fn a_long_grid_costs_what_its_cells_cost() {
        assert_eq!(z_order(Size::new(1, 1 << 40)).take(1000).map(|at| at.row).sum::<u64>(), 999 * 1000 / 2);
        assert_eq!(z_order(Size::new(3_000_000, 1)).count(), 3_000_000);
    }
}

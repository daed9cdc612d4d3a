"use strict";
// Where the turns of a tree stand: leaves one below the other, a turn in the middle of its
// children, depth from left to right. Units are rows and columns.

const Layout = (() => {
  // folded: names of turns whose children are not drawn.
  function tree(root, folded) {
    const at = new Map();
    let rows = 0;
    let depth = 0;
    const stack = [[root, 0, false]];
    while (stack.length) {
      const [node, column, done] = stack.pop();
      const children = folded.has(node.name) ? [] : node.children;
      if (!children.length) {
        at.set(node, { node, column, row: rows, shown: [] });
        rows += 1;
        depth = Math.max(depth, column);
      } else if (!done) {
        stack.push([node, column, true]);
        for (const child of [...children].reverse()) stack.push([child, column + 1, false]);
      } else {
        const shown = children.map((child) => at.get(child));
        const row = (shown[0].row + shown[shown.length - 1].row) / 2;
        at.set(node, { node, column, row, shown });
      }
    }
    return { placed: [...at.values()], rows, depth };
  }

  return { tree };
})();

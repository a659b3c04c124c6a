/** What the user did or gave that cannot work: one line that says what, and what would. */
export class HRMEdgeError extends Error {
  name = "HRMEdgeError";
}

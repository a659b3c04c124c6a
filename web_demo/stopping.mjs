const LONGEST_PERIOD = 64; // tokens of what is repeated
const REPEATS = 8;
const LEAST_REPEATED = 128; // tokens that repetitions have to fill: a ruled line is no loop

/** Finds the end of a list of tokens that is one block over and over, as runtime/decoding/stopping.py. */
export class Repetition {
  #last = [];
  #same = new Array(LONGEST_PERIOD + 1).fill(0); // by period: tokens in a row like those before

  /** Whether `token` makes a loop whole. */
  push(token) {
    let found = false;
    for (let period = 1; period <= this.#last.length; period++) {
      const same = this.#last.at(-period) === token ? this.#same[period] + 1 : 0;
      this.#same[period] = same;
      found ||= same >= Math.max((REPEATS - 1) * period, LEAST_REPEATED - period);
    }
    this.#last.push(token);
    if (this.#last.length > LONGEST_PERIOD) this.#last.shift();
    return found;
  }
}

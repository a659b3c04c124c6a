package org.hrmedge.core

/** Something that the user has to know: one line that says what, where, and what instead. */
open class Problem(message: String) : Exception(message)

/** The user stopped an answer. */
class Cancelled : Problem("Stopped.")

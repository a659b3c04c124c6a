package org.hrmedge.app

import android.os.Handler
import android.os.Looper
import java.util.concurrent.Executors
import org.hrmedge.app.engine.Limits
import org.hrmedge.app.engine.openEngine
import org.hrmedge.core.Answer
import org.hrmedge.core.Benchmark
import org.hrmedge.core.Engine
import org.hrmedge.core.Exchange
import org.hrmedge.core.Finish
import org.hrmedge.core.Measurement
import org.hrmedge.core.Memory
import org.hrmedge.core.Problem
import org.hrmedge.core.Stop
import org.hrmedge.core.mebibytes

/** What the screens show. All but [Idle] go on while screens come and go. */
sealed interface State {
    /** Nothing is going on; [message] says how the last thing went, or why not [unanswered]. */
    data class Idle(val message: String, val unanswered: String? = null) : State

    /** A model is being loaded. */
    data class Loading(val model: String) : State

    /** An answer is being written. */
    data class Answering(val question: String, val text: String) : State

    /** Importing or measuring; [done] is 0 to 1. */
    data class Working(val what: String, val done: Double) : State
}

/**
 * Runs the engine on one thread of its own and tells the main thread.
 *
 * All of its methods are for the main thread.
 */
class Runner(private val app: HrmEdgeApp) {
    private val worker = Executors.newSingleThreadExecutor()
    private val main = Handler(Looper.getMainLooper())
    private val listeners = LinkedHashSet<(State) -> Unit>()
    private var engine: Pair<Any, Engine>? = null // with what it was loaded for; worker thread only
    private var stop = Stop()

    var state: State = State.Idle("")
        private set

    /** What the last benchmark measured; empty before the first. */
    var measurements: List<Measurement> = emptyList()
        private set

    /** The plan that it took, and battery and heat before and after. */
    var condition: Map<String, String> = emptyMap()
        private set

    /** Calls [listener] with the state, now and at each change. */
    fun listen(listener: (State) -> Unit) {
        listeners.add(listener)
        listener(state)
    }

    /** Ends what [listen] began. */
    fun forget(listener: (State) -> Unit) {
        listeners.remove(listener)
    }

    /** Answers [question] and adds it to the history. */
    fun ask(question: String) = begin(question) { stop ->
        val preferences = app.preferences
        val settings = preferences.settings
        val engine = engine()
        val prompt = engine.manifest.prompt
        val earlier = if (preferences.conversation) app.history.exchanges else emptyList()
        val sent = prompt.conversation(earlier, question)
        val conditions = settings.conditions.filter { it in prompt.conditions }
        show(State.Answering(question, ""))
        val text = StringBuilder()
        val answer = engine.answer(sent, settings.copy(conditions = conditions), stop) {
            text.append(it)
            show(State.Answering(question, text.toString()))
        }
        val note = describe(answer)
        val exchange = Exchange(question, answer.text, note, System.currentTimeMillis())
        main.post { app.history.add(exchange) }
        note
    }

    /** Takes the last exchange back and answers its question anew, or [changed]. */
    fun again(changed: String? = null) {
        if (state !is State.Idle) return
        val last = app.history.removeLast() ?: return
        ask(changed ?: last.question)
    }

    /** Measures the chosen model. */
    fun measure(prefill: Int, decode: Int, repetitions: Int) = begin { stop ->
        val engine = engine()
        val session = engine.session ?: throw Problem(app.getString(R.string.no_benchmark))
        val benchmark = Benchmark(session, engine.manifest.architecture.vocabSize)
        val what = app.getString(R.string.measuring)
        show(State.Working(what, 0.0))
        val plan = mapOf("plan" to (engine.manifest.plan(app.preferences.plan)?.name ?: "all passes"))
        val before = plan + app.device.condition("before")
        val found = benchmark.run(prefill, decode, repetitions, stop) { show(State.Working(what, it)) }
        val after = app.device.condition("after")
        main.post {
            measurements = found
            condition = before + after
        }
        app.getString(R.string.measured)
    }

    /** Imports a bundle; [copy] gets a way to tell how far it is and returns the model's name. */
    fun import(copy: ((Double) -> Unit) -> String) = begin {
        val what = app.getString(R.string.importing)
        show(State.Working(what, 0.0))
        unload() // it may be the one that is replaced
        val name = copy { show(State.Working(what, it)) }
        main.post { app.preferences.model = name }
        app.getString(R.string.imported, name)
    }

    /** Ends what is going on, within one call of the model. */
    fun stop() = stop.request()

    /** Gives the model's memory back, once the worker is idle. */
    fun release() {
        worker.execute(::unload)
    }

    private fun begin(question: String? = null, work: (Stop) -> String) {
        if (state !is State.Idle) return
        val stop = Stop().also { this.stop = it }
        state = State.Loading(app.preferences.model)
        notifyListeners()
        worker.execute {
            val next = try {
                State.Idle(work(stop))
            } catch (problem: Problem) {
                State.Idle(problem.message!!, question)
            } catch (_: OutOfMemoryError) {
                unload()
                State.Idle(app.getString(R.string.out_of_memory), question)
            }
            show(next)
        }
    }

    private fun engine(): Engine {
        val preferences = app.preferences
        val threads = preferences.threads.takeIf { it > 0 } ?: app.device.fastCores
        val wanted = listOf(preferences.model, preferences.context, threads, preferences.plan)
        engine?.let { (loadedFor, loaded) -> if (loadedFor == wanted) return loaded }
        unload()
        val limits = Limits(preferences.context, threads, app.device.availableMemory, preferences.plan)
        val opened = openEngine(app.models.open(preferences.model), limits, app.device.cacheMemory())
        engine = wanted to opened
        return opened
    }

    private fun unload() {
        engine?.second?.close()
        engine = null
    }

    private fun describe(answer: Answer): String {
        val stats = answer.stats
        val speed = app.getString(R.string.speed, stats.ttft, stats.prefillTps, stats.decodeTps)
        val memory = Memory.now()?.let {
            app.getString(R.string.memory, mebibytes(it.anonymous), mebibytes(it.fileBacked))
        }
        val ending = when (answer.finish) {
            Finish.END -> null
            Finish.LENGTH -> app.getString(R.string.cut_off)
            Finish.STOPPED -> app.getString(R.string.stopped)
            Finish.REPETITION -> app.getString(R.string.repeated)
        }
        return listOfNotNull(ending, speed, memory).joinToString(" · ")
    }

    private fun show(next: State) {
        main.post {
            state = next
            notifyListeners()
        }
    }

    private fun notifyListeners() = listeners.toList().forEach { it(state) }
}

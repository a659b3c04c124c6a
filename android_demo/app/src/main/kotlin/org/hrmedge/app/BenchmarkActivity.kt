package org.hrmedge.app

import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.TextView
import org.hrmedge.core.Memory
import org.hrmedge.core.Report
import org.hrmedge.core.mebibytes

/** Measures the chosen model; the result can be shared as text and saved as JSON. */
class BenchmarkActivity : Screen(R.layout.benchmark) {
    private val progress by lazy { view<ProgressBar>(R.id.progress) }
    private val status by lazy { view<TextView>(R.id.status) }
    private val result by lazy { view<TextView>(R.id.result) }
    private val start by lazy { view<Button>(R.id.start) }

    override fun prepare() {
        for ((field, value) in DEFAULTS) view<EditText>(field).setText(value.toString())
        start.setOnClickListener { if (app.runner.state is State.Idle) measure() else app.runner.stop() }
        view<View>(R.id.share).setOnClickListener { shareText(report().table()) }
        view<View>(R.id.save).setOnClickListener { saveJson("hrm-edge-benchmark.json") }
    }

    override fun show(state: State) {
        val working = state as? State.Working
        progress.visibility = if (working == null) View.INVISIBLE else View.VISIBLE
        progress.progress = ((working?.done ?: 0.0) * 1000).toInt()
        start.setText(if (state is State.Idle) R.string.start else R.string.stop)
        val text = when (state) {
            is State.Idle -> state.message.ifEmpty { thermal().orEmpty() }
            is State.Working -> listOfNotNull(state.what, thermal()).joinToString(" ")
            is State.Loading -> getString(R.string.loading, state.model)
            is State.Answering -> getString(R.string.answering)
        }
        if (status.text.toString() != text) status.text = text
        val measured = app.runner.measurements.isNotEmpty()
        result.text = if (measured) report().table() else ""
        for (button in listOf(R.id.share, R.id.save)) view<View>(button).isEnabled = measured
    }

    override fun json(): String = report().json()

    private fun measure() {
        val (prompt, answer, repetitions) = DEFAULTS.map { (field, value) ->
            view<EditText>(field).text.toString().toIntOrNull()?.coerceIn(1, 100_000) ?: value
        }
        app.runner.measure(prompt, answer, repetitions)
    }

    private fun report(): Report {
        val facts = linkedMapOf("device" to app.device.name, "model" to app.preferences.model)
        facts["threads"] = (app.preferences.threads.takeIf { it > 0 } ?: app.device.fastCores).toString()
        Memory.now()?.let { facts["memory"] = mebibytes(it.anonymous) }
        return Report(facts + app.runner.condition, app.runner.measurements)
    }

    private fun thermal(): String? =
        app.device.thermalStatus()?.let { getString(R.string.thermal_status, it) }

    private companion object {
        val DEFAULTS = listOf(R.id.prompt_tokens to 128, R.id.answer_tokens to 64, R.id.repetitions to 5)
    }
}

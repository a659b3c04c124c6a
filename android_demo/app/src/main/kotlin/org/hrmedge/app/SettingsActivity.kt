package org.hrmedge.app

import android.app.AlertDialog
import android.widget.Button
import android.widget.CheckBox
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.Switch
import android.widget.Toast
import kotlin.math.roundToInt
import org.hrmedge.core.Manifest
import org.hrmedge.core.Problem
import org.hrmedge.core.Settings

/** How to answer. What is typed is kept when the screen is left, if it makes sense. */
class SettingsActivity : Screen(R.layout.settings) {
    private val boxes = LinkedHashMap<String, CheckBox>()
    private val manifest: Manifest? by lazy {
        try {
            app.models.open(app.preferences.model).manifest
        } catch (_: Problem) {
            null
        }
    }

    override fun prepare() {
        val settings = app.preferences.settings
        val group = view<LinearLayout>(R.id.conditions)
        for (condition in conditions()) {
            val box = CheckBox(this).apply {
                text = condition
                isChecked = condition in settings.conditions
                minHeight = (48 * resources.displayMetrics.density).toInt()
            }
            boxes[condition] = box
            group.addView(box)
        }
        fill(R.id.max_tokens, settings.maxTokens)
        fill(R.id.temperature, settings.temperature)
        fill(R.id.top_k, settings.topK)
        fill(R.id.top_p, settings.topP)
        fill(R.id.min_p, settings.minP)
        fill(R.id.seed, settings.seed ?: "")
        fill(R.id.context, app.preferences.context)
        fill(R.id.threads, app.preferences.threads)
        val plan = view<Button>(R.id.plan)
        plan.text = planLabel(app.preferences.plan)
        plan.setOnClickListener { choosePlan(plan) }
        view<Switch>(R.id.conversation).isChecked = app.preferences.conversation
    }

    override fun show(state: State) = Unit

    override fun onPause() {
        save()
        super.onPause()
    }

    /** Takes effect at once, unlike what is typed: the list says what it costs. */
    private fun choosePlan(button: Button) {
        val names = listOf("") + listOfNotNull(manifest?.fast?.let { Manifest.RECOMMENDED }) +
            manifest?.plans.orEmpty().map { it.name }
        val labels = names.map(::planLabel).toTypedArray()
        AlertDialog.Builder(this)
            .setTitle(R.string.plan)
            .setSingleChoiceItems(labels, names.indexOf(app.preferences.plan)) { dialog, which ->
                app.preferences.plan = names[which]
                button.text = labels[which]
                dialog.dismiss()
            }
            .setNegativeButton(android.R.string.cancel, null)
            .show()
    }

    private fun planLabel(name: String): String {
        val plan = manifest?.plan(name) ?: return getString(R.string.plan_full)
        fun percent(share: Double) = (100 * share).roundToInt()
        val price = getString(
            R.string.plan_price, plan.name, percent(plan.work), percent(plan.memory), percent(plan.sameAnswers),
        )
        return if (name == Manifest.RECOMMENDED) getString(R.string.plan_recommended, price) else price
    }

    /** Those of the chosen model, or the usual ones where it cannot be read. */
    private fun conditions(): Collection<String> =
        manifest?.prompt?.conditions?.keys ?: listOf("direct", "cot", "noisy", "synth")

    private fun save() = try {
        app.preferences.settings = Settings(
            conditions = boxes.filterValues { it.isChecked }.keys.toList(),
            maxTokens = whole(R.id.max_tokens),
            temperature = number(R.id.temperature),
            topK = whole(R.id.top_k),
            topP = number(R.id.top_p),
            minP = number(R.id.min_p),
            seed = typed(R.id.seed).toLongOrNull(),
        )
        app.preferences.context = whole(R.id.context).coerceAtLeast(2)
        app.preferences.threads = whole(R.id.threads)
        app.preferences.conversation = view<Switch>(R.id.conversation).isChecked
    } catch (problem: Problem) {
        Toast.makeText(this, problem.message, Toast.LENGTH_LONG).show()
    }

    private fun fill(field: Int, value: Any) = view<EditText>(field).setText(value.toString())

    private fun typed(field: Int): String = view<EditText>(field).text.toString().trim()

    private fun whole(field: Int): Int = typed(field).toIntOrNull() ?: notANumber(field)

    private fun number(field: Int): Double = typed(field).toDoubleOrNull() ?: notANumber(field)

    private fun notANumber(field: Int): Nothing {
        throw Problem("${getString(R.string.not_a_number)}: ${typed(field)}")
    }
}

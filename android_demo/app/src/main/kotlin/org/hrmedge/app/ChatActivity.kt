package org.hrmedge.app

import android.app.AlertDialog
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Context
import android.content.Intent
import android.view.LayoutInflater
import android.view.Menu
import android.view.MenuItem
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ListView
import android.widget.TextView
import android.widget.Toast
import org.hrmedge.core.Exchange

/** Question and answer: the conversation, what is being written, and a line to type in. */
class ChatActivity : Screen(R.layout.chat) {
    private val exchanges by lazy { Exchanges(layoutInflater, ::described, ::offer) }
    private var changing = false // what is typed takes the place of the last question
    private val question by lazy { view<EditText>(R.id.question) }
    private val send by lazy { view<Button>(R.id.send) }
    private val status by lazy { view<TextView>(R.id.status) }

    override fun prepare() {
        val list = view<ListView>(R.id.exchanges)
        list.adapter = exchanges
        list.emptyView = view<View>(R.id.empty)
        send.setOnClickListener { if (app.runner.state is State.Idle) ask() else app.runner.stop() }
    }

    override fun onStart() {
        super.onStart()
        actionBar?.subtitle = app.preferences.model
    }

    override fun show(state: State) {
        val writing = state as? State.Answering
        val current = writing?.let { Exchange(it.question, it.text, "", 0) }
        exchanges.show(app.history.exchanges + listOfNotNull(current))
        val unanswered = (state as? State.Idle)?.unanswered
        if (unanswered != null && question.text.isEmpty()) question.setText(unanswered)
        val text = getString(if (state is State.Idle) R.string.send else R.string.stop)
        if (send.text.toString() != text) send.text = text
        tell(
            when (state) {
                is State.Idle -> if (exchanges.lastNote == state.message) "" else state.message
                is State.Loading -> getString(R.string.loading, state.model)
                is State.Answering -> getString(R.string.answering)
                is State.Working -> state.what
            },
        )
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.chat, menu)
        return true
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            R.id.models -> open(ModelsActivity::class.java)
            R.id.settings -> open(SettingsActivity::class.java)
            R.id.benchmark -> open(BenchmarkActivity::class.java)
            R.id.share -> shareText(app.history.exchanges.joinToString("\n\n", transform = ::described))
            R.id.save -> saveJson("hrm-edge-conversation.json")
            R.id.clear -> confirmClear()
            R.id.about -> open(AboutActivity::class.java)
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    private fun ask() {
        val text = question.text.toString()
        if (text.isBlank()) {
            changing = false // the way out of it
            return
        }
        question.text.clear()
        if (changing) app.runner.again(text) else app.runner.ask(text)
        changing = false
    }

    /** What can be done with the exchange in [row]; more with the last one, when nothing goes on. */
    private fun offer(row: Int) {
        val exchange = exchanges.getItem(row)
        val offers = linkedMapOf(
            R.string.copy_answer to { copy(exchange.answer) },
            R.string.copy_question to { copy(exchange.question) },
        )
        if (app.runner.state is State.Idle && row == exchanges.count - 1) {
            offers[R.string.again] = { app.runner.again() }
            offers[R.string.edit_question] = { change(exchange) }
        }
        val labels = offers.keys.map(::getString).toTypedArray()
        AlertDialog.Builder(this)
            .setItems(labels) { _, which -> offers.values.toList()[which]() }
            .setNegativeButton(android.R.string.cancel, null)
            .show()
    }

    private fun change(exchange: Exchange) {
        changing = true
        question.setText(exchange.question)
        question.setSelection(question.text.length)
        question.requestFocus()
        tell(getString(R.string.changing))
    }

    private fun copy(text: String) {
        val clipboard = getSystemService(Context.CLIPBOARD_SERVICE) as ClipboardManager
        clipboard.setPrimaryClip(ClipData.newPlainText(getString(R.string.app_name), text))
        Toast.makeText(this, R.string.copied, Toast.LENGTH_SHORT).show()
    }

    override fun json(): String = app.history.json()

    /** A screen reader speaks the status when it changes, so it only changes when it says more. */
    private fun tell(text: String) {
        if (status.text.toString() != text) status.text = text
    }

    private fun confirmClear() {
        AlertDialog.Builder(this)
            .setMessage(R.string.clear_history)
            .setNegativeButton(android.R.string.cancel, null)
            .setPositiveButton(R.string.new_conversation) { _, _ ->
                app.history.clear()
                changing = false
                show(app.runner.state)
            }
            .show()
    }

    private fun described(exchange: Exchange): String =
        "${getString(R.string.you)}: ${exchange.question}\n${getString(R.string.answer)}: ${exchange.answer}"

    private fun open(screen: Class<*>) = startActivity(Intent(this, screen))
}

/** The rows of the conversation. */
private class Exchanges(
    private val inflater: LayoutInflater,
    private val describe: (Exchange) -> String,
    private val offer: (Int) -> Unit,
) : BaseAdapter() {
    private var rows: List<Exchange> = emptyList()

    val lastNote: String? get() = rows.lastOrNull()?.note

    fun show(rows: List<Exchange>) {
        if (this.rows == rows) return
        this.rows = rows
        notifyDataSetChanged()
    }

    override fun getCount() = rows.size

    override fun getItem(position: Int) = rows[position]

    override fun getItemId(position: Int) = position.toLong()

    override fun getView(position: Int, recycled: View?, parent: ViewGroup): View {
        val view = recycled ?: inflater.inflate(R.layout.exchange, parent, false)
        val row = rows[position]
        (view.findViewById(R.id.asked) as TextView).text = row.question
        (view.findViewById(R.id.answered) as TextView).text = row.answer
        (view.findViewById(R.id.note) as TextView).text = row.note
        (view.findViewById(R.id.more) as View).setOnClickListener { offer(position) }
        view.contentDescription = describe(row)
        return view
    }
}

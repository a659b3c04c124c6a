package org.hrmedge.app

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.Button
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.TextView
import org.hrmedge.core.Problem
import org.hrmedge.core.largestContext
import org.hrmedge.core.mebibytes
import org.hrmedge.core.need

/** The bundles on this device: choose, import and delete. */
class ModelsActivity : Screen(R.layout.models) {
    private val rows = Rows()
    private val progress by lazy { view<ProgressBar>(R.id.progress) }
    private val status by lazy { view<TextView>(R.id.status) }
    private val import by lazy { view<Button>(R.id.import_model) }

    override fun prepare() {
        val list = view<ListView>(R.id.models)
        list.adapter = rows
        list.setOnItemClickListener { _, _, position, _ ->
            app.preferences.model = rows.getItem(position)
            rows.reload()
        }
        import.setOnClickListener {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICKED)
        }
    }

    override fun show(state: State) {
        val working = state as? State.Working
        progress.visibility = if (working == null) View.GONE else View.VISIBLE
        progress.progress = ((working?.done ?: 0.0) * 1000).toInt()
        import.isEnabled = state is State.Idle
        val text = when (state) {
            is State.Idle -> state.message.ifEmpty { getString(R.string.import_help) }
            is State.Working -> state.what
            is State.Loading -> getString(R.string.loading, state.model)
            is State.Answering -> getString(R.string.answering)
        }
        if (status.text.toString() != text) status.text = text
        if (state is State.Idle) rows.reload()
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data
        if (request != PICKED || result != Activity.RESULT_OK || tree == null) return
        val models = app.models
        app.runner.import { progress -> models.import(tree, progress) }
    }

    private fun confirmDelete(name: String) {
        AlertDialog.Builder(this)
            .setMessage(getString(R.string.delete_model, name))
            .setNegativeButton(android.R.string.cancel, null)
            .setPositiveButton(R.string.delete) { _, _ ->
                if (app.preferences.model == name) app.preferences.model = Models.BUILT_IN.first()
                app.models.delete(name)
                rows.reload()
            }
            .show()
    }

    private inner class Rows : BaseAdapter() {
        private var names: List<String> = emptyList()

        fun reload() {
            names = app.models.names()
            notifyDataSetChanged()
        }

        override fun getCount() = names.size

        override fun getItem(position: Int) = names[position]

        override fun getItemId(position: Int) = position.toLong()

        override fun getView(position: Int, recycled: View?, parent: ViewGroup): View {
            val view = recycled ?: layoutInflater.inflate(R.layout.model, parent, false)
            val name = names[position]
            val chosen = name == app.preferences.model
            (view.findViewById(R.id.name) as TextView).text =
                if (chosen) getString(R.string.chosen, name) else name
            val (facts, fit) = describe(name)
            (view.findViewById(R.id.facts) as TextView).text = facts
            (view.findViewById(R.id.fit) as TextView).text = fit
            val delete = view.findViewById(R.id.delete) as Button
            delete.visibility = if (name in Models.BUILT_IN) View.GONE else View.VISIBLE
            delete.contentDescription = getString(R.string.delete) + " " + name
            delete.setOnClickListener { confirmDelete(name) }
            return view
        }

        /** (what the bundle is, whether it fits now). */
        private fun describe(name: String): Pair<String, String> = try {
            val manifest = app.models.open(name).manifest
            val facts = getString(
                R.string.model_facts,
                manifest.target,
                manifest.bits,
                manifest.cache.label,
                mebibytes(manifest.size),
            )
            val room = app.device.availableMemory
            val fits = largestContext(manifest, room)
            val fit = if (fits > 0) {
                getString(R.string.model_fits, fits, manifest.maxSeqLen)
            } else {
                getString(R.string.model_too_large, mebibytes(need(manifest, 2).total), mebibytes(room))
            }
            facts to fit
        } catch (problem: Problem) {
            problem.message!! to ""
        }
    }

    private companion object {
        const val PICKED = 1
    }
}

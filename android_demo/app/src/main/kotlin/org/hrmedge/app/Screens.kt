package org.hrmedge.app

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.MenuItem
import android.view.View
import android.widget.Toolbar

/** A screen that shows what the runner does while it is in front. */
abstract class Screen(private val layout: Int) : Activity() {
    protected val app: HrmEdgeApp get() = application as HrmEdgeApp
    private val listener: (State) -> Unit = ::show

    /** Shows [state]. */
    protected abstract fun show(state: State)

    /** Prepares the views. */
    protected abstract fun prepare()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(layout)
        setActionBar(view<Toolbar>(R.id.toolbar))
        actionBar?.setDisplayHomeAsUpEnabled(!isTaskRoot)
        prepare()
    }

    override fun onStart() {
        super.onStart()
        app.runner.listen(listener)
    }

    override fun onStop() {
        app.runner.forget(listener)
        super.onStop()
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        if (item.itemId != android.R.id.home) return super.onOptionsItemSelected(item)
        finish()
        return true
    }

    /** The view [id] of this screen. */
    @Suppress("UNCHECKED_CAST")
    protected fun <V : View> view(id: Int): V = findViewById(id) as V

    /** Hands [text] to another app of the user's choice. */
    protected fun shareText(text: String) {
        val send = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, text)
        startActivity(Intent.createChooser(send, getString(R.string.share)))
    }
}

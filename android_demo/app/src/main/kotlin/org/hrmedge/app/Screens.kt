package org.hrmedge.app

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.MenuItem
import android.view.View
import android.view.WindowManager
import android.widget.Toast
import android.widget.Toolbar
import java.io.IOException

/** A screen that shows what the runner does while it is in front. */
abstract class Screen(private val layout: Int) : Activity() {
    protected val app: HrmEdgeApp get() = application as HrmEdgeApp
    private val listener: (State) -> Unit = { state ->
        if (state is State.Idle) window.clearFlags(AWAKE) else window.addFlags(AWAKE)
        show(state)
    }

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

    /** What [saveJson] writes. */
    protected open fun json(): String = throw NotImplementedError()

    /** Lets the user choose a file, [name] at first, and writes [json] into it. */
    protected fun saveJson(name: String) {
        val create = Intent(Intent.ACTION_CREATE_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE)
            .setType("application/json").putExtra(Intent.EXTRA_TITLE, name)
        startActivityForResult(create, SAVED)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val target = data?.data
        if (request != SAVED || result != RESULT_OK || target == null) return
        val message = try {
            contentResolver.openOutputStream(target)!!.use { it.write(json().encodeToByteArray()) }
            getString(R.string.saved)
        } catch (error: IOException) {
            getString(R.string.not_saved, error.message)
        }
        Toast.makeText(this, message, Toast.LENGTH_LONG).show()
    }

    /** Hands [text] to another app of the user's choice. */
    protected fun shareText(text: String) {
        val send = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, text)
        startActivity(Intent.createChooser(send, getString(R.string.share)))
    }

    private companion object {
        const val SAVED = 100
        const val AWAKE = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON // while something goes on
    }
}

package org.hrmedge.app

import android.os.Build
import android.widget.ArrayAdapter
import android.widget.ListView

/** Which version this is, and the licences of all that is in it, a paragraph a row. */
class AboutActivity : Screen(R.layout.about) {
    override fun prepare() {
        val version = packageManager.getPackageInfo(packageName, 0).versionName
        val head = getString(R.string.about_version, version, Build.SUPPORTED_ABIS.first())
        val notices = assets.list(NOTICES).orEmpty().sorted()
        val follows = if (notices.isEmpty()) R.string.about_no_notices else R.string.about_notices
        val rows = listOf(head, getString(follows)) + notices.flatMap(::paragraphs)
        view<ListView>(R.id.notices).adapter = ArrayAdapter(this, R.layout.notice, rows)
    }

    override fun show(state: State) = Unit

    private fun paragraphs(name: String): List<String> {
        val text = assets.open("$NOTICES/$name").use { it.readBytes().decodeToString() }
        val title = name.substringAfter(' ').removeSuffix(".txt")
        return listOf(title.uppercase()) + text.split(BETWEEN).map { it.trim('\n') }.filter { it.isNotBlank() }
    }

    private companion object {
        const val NOTICES = "notices"
        val BETWEEN = Regex("\\r?\\n\\s*\\r?\\n")
    }
}

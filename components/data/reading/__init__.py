"""Where texts and rows come from: local files, archives, web pages, repositories, installed packages, the hub; and what may be taken."""

"""One file a page; dashboards/app.py lists them. A folder called pages would be served by Streamlit itself, past the signing in."""

"""Tables on disk: folders of parquet files of bounded size, each with a list that is written last.

In: rows. Out: files and lists, read file by file. Read table_list.py first; table_folder.py reads, table_writer.py writes.
"""

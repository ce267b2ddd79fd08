%% SPDX-License-Identifier: Apache-2.0
%% Commands on stdin, one line each; answers on stdout, one line each.
%%
%% The VM's own reader of stdin would add a dozen messages to each command. A port on the two file
%% descriptors adds one (the line), and nothing for the answer. Start the VM with -noinput, so that
%% no other process reads.
-module(control).
-export([serve/2, say/2, next/1]).

-type control() :: port().
-export_type([control/0]).

%% Runs Command(Control, Words) for each line, after Prepare(Control), until stdin ends.
serve(Prepare, Command) ->
    Control = open_port({fd, 0, 1}, [{line, 4096}, eof]),
    _ = words("load what this takes"),
    Prepare(Control),
    say(Control, "ready"),
    loop(Control, Command).

loop(Control, Command) ->
    case next(Control) of
        ["quit"] -> erlang:halt(0);
        [] -> loop(Control, Command);
        Words ->
            say(Control, Command(Control, Words)),
            loop(Control, Command)
    end.

%% The next line, cut into words. The end of stdin is the end of the VM, whatever is under way.
next(Control) ->
    receive
        {Control, {data, {eol, Line}}} -> words(Line);
        {Control, eof} -> erlang:halt(0)
    end.

words(Line) -> string:lexemes(Line, " ").

say(Control, Text) ->
    true = erlang:port_command(Control, [Text, $\n]),
    ok.

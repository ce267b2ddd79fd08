%% SPDX-License-Identifier: Apache-2.0
%% Marks every module below some folders, loads what came out as far as the loader checks it, and unmarks it again.
%%
%%     erl -noshell -pa EBIN -run corpus main PROFILE FOLDER...
%%
%% Prints {failed, File, Why} for what goes wrong, and {totals, Map} at the end.
-module(corpus).
-export([main/1]).

main([Profile | Folders]) ->
    Files = lists:append([found(F) || F <- Folders]),
    Known = scope_mark_files:behaviours(Files),
    Options = #{profile => list_to_atom(Profile), behaviours => Known},
    Results = lists:zip(Files, scope_mark_files:each(fun(F) -> one(F, Options) end, Files)),
    [io:format("~0p.~n", [{failed, F, R}]) || {F, R} <- Results, not is_map(R)],
    io:format("~0p.~n", [{totals, lists:foldl(fun sum/2, #{failed => 0}, [R || {_, R} <- Results])}]),
    halt().

found(Folder) ->
    {ok, Files} = scope_mark_files:find(Folder),
    Files.

one(File, Options) ->
    {ok, Bin} = file:read_file(File),
    case scope_mark:mark(Bin, Options) of
        {error, preloaded} ->
            #{preloaded => 1};
        {error, Reason} ->
            {not_marked, Reason};
        {unchanged, _} ->
            #{without => 1};
        {ok, Marked, #{functions := F, markers := M, kinds := Kinds}} ->
            Whole = {scope_mark:unmark(Marked), scope_mark:mark(Marked, Options)},
            case {Whole, loads(Bin, Marked)} of
                {{{ok, Bin}, {unchanged, _}}, true} ->
                    maps:merge(#{modules => 1, functions => F, markers => M,
                                 bytes => byte_size(Bin), marked_bytes => byte_size(Marked)}, Kinds);
                {_, false} ->
                    refused_by_the_loader;
                _ ->
                    not_as_it_was
            end
    end.

loads(Bin, Marked) ->
    {ok, {Module, _}} = beam_lib:md5(Bin),
    is_reference(erlang:prepare_loading(Module, Marked)).

sum(R, Acc) when is_map(R) -> maps:merge_with(fun(_, A, B) -> A + B end, R, Acc);
sum(_, #{failed := N} = Acc) -> Acc#{failed := N + 1}.
